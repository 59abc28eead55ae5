"""A running cluster: munged, slurmctld, and one slurmd per node, all children of a keeper.

The nodes share this machine's file system, network and process table; each has a host name and an address of
its own, and sees the names of all. Everything ends with the keeper, which ends with its owner.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from flagscale.files import locked
from flagscale_testing.farm.keeper import Keeper
from flagscale_testing.farm.sshd import find_program
from flagscale_testing.ports import free_port
from flagscale_testing.slurm.config import Cluster, Node, Proctrack

_READY = 60.0
_AS_NODE = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'
_CONTROLLER = "slurmctld"
_CGROUPS_IN_USE = Path(tempfile.gettempdir(), "flagscale-slurm-cgroups.lock")
_FREEZER = Path("/sys/fs/cgroup/freezer")


@dataclass
class SlurmCluster:
    """Runs a cluster; its commands answer in `environment()`."""

    config: Cluster
    keeper: Keeper
    daemons: dict[str, psutil.Process] = field(default_factory=dict)
    """By node, `slurmctld` or `munged`."""

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.config.nodes)

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return an environment (default: this process's) in which Slurm's programs ask this cluster."""
        kept = os.environ if base is None else base
        outside = {name: value for name, value in kept.items() if not name.startswith("SLURM")}
        path = os.pathsep.join([outside.get("PATH", ""), "/usr/sbin", "/sbin"])
        return {**outside, "PATH": path, "SLURM_CONF": str(self.config.conf)}

    def run(
        self, *words: str, code: int | None = 0, seconds: float = 60.0, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, with `more` environment variables, and check its exit code."""
        done = subprocess.run(
            words,
            env={**self.environment(), **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=self.config.folder,
        )
        assert code in (None, done.returncode), f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def states(self) -> dict[str, str]:
        """Return the state of each node, such as `idle`; {} while the controller does not answer."""
        done = self.run("sinfo", "--noheader", "--Node", "--format=%N %T", "--partition=main", code=None)
        return dict(line.split() for line in done.stdout.splitlines())

    def wait_until_idle(self) -> None:
        """Wait until all nodes are ready and free."""
        self.wait_until(lambda: [*self.states().values()] == ["idle"] * len(self.nodes), "idle nodes")

    def wait_until(self, is_true: Callable[[], object], what: str, seconds: float = _READY) -> None:
        """Wait for a condition. Raises TimeoutError, with what the daemons have logged last."""
        deadline = time.monotonic() + seconds
        while not is_true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} after {seconds:g} s: {self.states()}\n{self._last_lines()}")
            time.sleep(0.05)

    def processes(self, node: str) -> list[psutil.Process]:
        """Return all processes on a node except its slurmd, whatever they did to their environment.

        A node's processes are those that share its host name.
        """
        name_space = _names(self.daemons[node].pid)
        return [
            process
            for process in self.keeper.processes()
            if process.pid != self.daemons[node].pid and _names(process.pid) == name_space != ""
        ]

    def kill_slurmd(self, node: str) -> None:
        """Kill the daemon of a node; what it has started runs on."""
        self._kill(node)

    def kill_node(self, node: str) -> None:
        """Kill a node with everything on it, as if its power had failed."""
        running = self.processes(node)
        self._kill(node)
        for process in running:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(running, timeout=10)

    def kill_controller(self) -> None:
        """Kill the controller; nodes and jobs run on."""
        self._kill(_CONTROLLER)

    def pause_controller(self) -> None:
        """Stop the controller so that it accepts connections, but never answers."""
        self.daemons[_CONTROLLER].suspend()

    def resume_controller(self) -> None:
        """Let the controller answer again."""
        self.daemons[_CONTROLLER].resume()

    def start_controller(self) -> None:
        """Start the controller, at first or again with the state that it has saved."""
        self._start(_CONTROLLER, "slurmctld", "-D", "-f", str(self.config.conf))

    def start_node(self, name: str) -> None:
        """Start a node, at first or again."""
        slurmd = _program("slurmd")
        words = [slurmd, "-D", "-N", name, "-f", str(self.config.conf)]
        hosts = str(self.config.folder / "hosts")
        self._start(name, "unshare", "--mount", "--uts", "sh", "-c", _AS_NODE, "sh", hosts, name, *words)

    def start(self) -> None:
        """Start all daemons, and wait until the nodes are ready."""
        munge = self.config.folder / "munge"
        files = {"key-file": munge / "key", "pid-file": munge / "pid", "log-file": munge / "log"}
        options = [f"--{name}={path}" for name, path in {**files, "seed-file": munge / "seed"}.items()]
        # Forced, because folders of tests are private and their daemons belong to root.
        self._start("munged", "munged", "--foreground", "--force", f"--socket={self.config.socket}", *options)
        self.wait_until(self.config.socket.exists, "munged")
        self.start_controller()
        for node in self.config.nodes:
            self.start_node(node.name)
        self.wait_until_idle()

    def _start(self, name: str, program: str, *words: str) -> None:
        log = self.config.folder / "logs" / f"{name}.output"
        conf = f"SLURM_CONF={self.config.conf}"
        self.daemons[name] = self.keeper.start(["env", conf, _program(program), *words], log)

    def _kill(self, name: str) -> None:
        self.daemons[name].send_signal(signal.SIGKILL)
        self.daemons[name].wait(10)

    def _last_lines(self) -> str:
        logs = sorted((self.config.folder / "logs").iterdir())
        return "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-1500:]}" for log in logs)


def _program(name: str) -> str:
    path = find_program(name)
    assert path, f"{name} is not installed"
    return path


def _names(pid: int) -> str:
    """Return the namespace of host names that a process is in; "" if it has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/uts")
    except OSError:
        return ""


@contextmanager
def slurm_cluster(
    folder: Path, count: int = 3, proctrack: Proctrack = "linuxproc", **settings: object
) -> Iterator[SlurmCluster]:
    """Make a cluster of nodes n1, n2, ... in an empty folder; at the end, none of its processes is left.

    Args:
        settings: further fields of `Cluster`.
    """
    folder = folder.resolve()
    # Other clusters on this machine use the same ports on other addresses.
    network = f"127.{random.randrange(1, 255)}.{random.randrange(255)}"
    nodes = tuple(
        Node(f"n{n}", f"{network}.{10 + n}", free_port(), "tiny" if n == 1 else "small")
        for n in range(1, count + 1)
    )
    config = Cluster(folder, free_port(), nodes, proctrack, **settings)  # type: ignore[arg-type]
    config.write_files()
    with ExitStack() as held:
        if proctrack == "cgroup":
            # Nodes of the same name have the same groups, whichever cluster they belong to.
            held.enter_context(locked(_CGROUPS_IN_USE))
            held.callback(_remove_cgroups, nodes)
        cluster = SlurmCluster(config, held.enter_context(Keeper()))
        cluster.start()
        yield cluster


def _remove_cgroups(nodes: tuple[Node, ...]) -> None:
    """Remove the empty groups that the slurmds leave behind."""
    for node in nodes:
        for top in _FREEZER.glob(f"slurm*{node.name}"):
            for path, _, _ in os.walk(top, topdown=False):
                os.rmdir(path)
