"""`keep_last` and `keep_every` in real trainings: in both formats, and with asynchronous saves."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale.run.checkpoints import TRACKER
from flagscale.run.manifest import candidates
from flagscale_testing.ranks.forked import Curve, Run, run_all
from flagscale_testing.ranks.training import MOCK_DATA

pytestmark = pytest.mark.slow

MODEL = (
    *("--num-layers", "1", "--hidden-size", "32", "--num-attention-heads", "2", "--seq-length", "16"),
    *("--max-position-embeddings", "16", "--micro-batch-size", "1", "--global-batch-size", "2"),
    *("--lr", "1e-2", "--log-interval", "1", "--eval-iters", "0", *MOCK_DATA),
)
KINDS = {"sync": (), "async": ("--async-save",), "torch": ("--ckpt-format", "torch")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Curve]]:
    """Save each of 7 iterations; keep two and the fourth. Then set `sync` back to 4, and train up to 5."""
    folder = tmp_path_factory.mktemp("kept")

    def run(name: str, directory: str, until: int, *more: str) -> Run:
        where = ("--save", str(folder / directory), "--load", str(folder / directory))
        keeping = ("--save-interval", "1", "--keep-last", "2", "--keep-every", "4")
        return Run(name, 1, (*MODEL, *where, *keeping, "--train-iters", str(until), *more))

    runs = [run(kind, f"saved {kind}", 7, *more) for kind, more in KINDS.items()]
    return folder, run_all(
        [*runs, run("set back", "saved sync", 5, "--ckpt-step", "4", "--override-opt-param-scheduler")],
        folder,
    )


@pytest.mark.parametrize(
    ("kind", "kept"), [("async", "764"), ("torch", "764"), ("sync", "7654")], ids=["async", "torch", "sync"]
)
def test_the_newest_and_the_multiples_are_kept(
    saved: tuple[Path, dict[str, Curve]], kind: str, kept: str
) -> None:
    folder, curves = saved
    assert not any(curve.error for curve in curves.values())
    directory = folder / f"saved {kind}"
    assert (directory / TRACKER).read_text() == ("5" if kind == "sync" else "7")
    assert "".join(str(one.iteration) for one in candidates(directory) if one.usable) == kept
    assert not (directory / "iter_0000001.removing").exists()  # deleted while the training went on
