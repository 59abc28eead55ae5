"""Where torchrun keeps what ranks print: `<log dir>/<rendezvous id>_<random>/attempt_<n>/<local rank>/`."""

from __future__ import annotations

from pathlib import Path

from flagscale.job import NodeCommand

_STREAMS = ("stdout.log", "stderr.log")


def rank_logs(node: NodeCommand) -> dict[int, tuple[Path, ...]]:
    """Return stdout and stderr of the newest attempt of each rank of this host, by local rank.

    None where the launcher is not torchrun.
    """
    if not {"--log-dir", "--rdzv-id"} <= {*node.argv}:
        return {}
    runs = Path(_option(node, "--log-dir")).glob(f"{_escaped(_option(node, '--rdzv-id'))}_*")
    newest = max(runs, key=lambda folder: folder.stat().st_mtime, default=None)
    if newest is None:
        return {}
    found: dict[int, tuple[Path, ...]] = {}
    for attempt in sorted(
        newest.glob("attempt_*"), key=lambda folder: _number(folder.name.rpartition("_")[2])
    ):
        for rank in attempt.iterdir():
            files = tuple(rank / stream for stream in _STREAMS if (rank / stream).is_file())
            if files and rank.name.isdigit():
                found[int(rank.name)] = files
    return dict(sorted(found.items()))


def has_error(node: NodeCommand) -> bool:
    """Whether a rank of this host's newest attempt has written down an exception, for torchrun to tell."""
    return any((streams[0].parent / "error.json").exists() for streams in rank_logs(node).values())


def _option(node: NodeCommand, name: str) -> str:
    """torchrun's own options come first in argv, so the first one of this name is torchrun's."""
    return node.argv[node.argv.index(name) + 1]


def _escaped(name: str) -> str:
    """Return a glob pattern that matches a name as it is written."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _number(text: str) -> int:
    return int(text) if text.isdigit() else -1
