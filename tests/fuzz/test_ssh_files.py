"""SSH configurations and known hosts in which a hand has slipped: settings, or the documented error."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from tests.fuzz.ssh_files import SshFiles, read_ssh_files, ssh_slips


@settings(max_examples=60, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(ssh_slips())
def test_slips_in_ssh_files(files: SshFiles) -> None:
    read_ssh_files(files)
