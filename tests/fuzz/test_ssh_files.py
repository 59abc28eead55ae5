"""SSH configurations and known hosts in which a hand has slipped: settings, or the documented error."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, given, settings

from flagscale.remote.without_openssh import ssh_config
from flagscale.remote.without_openssh.known_hosts import known_keys
from flagscale.remote.without_openssh.ssh_config_blocks import ConfigError
from flagscale.remote.without_openssh.ssh_jumps import read_jumps
from tests.fuzz.ssh_files import SshFiles, ssh_slips


def read(files: SshFiles) -> None:
    """Read the files for some hosts; raises nothing but what is documented."""
    with TemporaryDirectory(prefix="slips-") as name:
        folder = Path(name, ".ssh")
        (folder / "config.d").mkdir(parents=True)
        (folder / "config").write_bytes(files.config)
        (folder / "known_hosts").write_bytes(files.known_hosts)
        if files.included is not None:
            (folder / "config.d" / "other").write_bytes(files.included)
        home, os.environ["HOME"] = os.environ.get("HOME", ""), name
        try:
            for host in ("gpu-1", "gpu-9", "jump", "bad.cluster.example", "::1"):
                with suppress(ConfigError):
                    read_jumps(ssh_config.settings_of(host).jumps)
                with suppress(ConfigError):
                    known_keys([folder / "known_hosts"], host)
        finally:
            os.environ["HOME"] = home


@settings(max_examples=60, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(ssh_slips())
def test_slips_in_ssh_files(files: SshFiles) -> None:
    read(files)
