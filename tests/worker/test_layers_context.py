"""Attention over a sequence split across ranks, compared with plain float64 attention to the whole sequence.

Run as a module, this file is the job under test: it forks the ranks, and each writes the errors it found.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from flagscale_testing.ranks.functions import on_ranks
from flagscale_testing.ranks.training import PATIENCE, ROOT, environment
from tests.worker.test_layers import LIMITS, as_leaves, causal, config, documents, error, inputs, reference

Case = tuple[int, str, int, torch.dtype]  # ranks, kind of exchange or of mask, groups of keys, precision

CASES: tuple[Case, ...] = tuple(
    (ranks, way, groups, dtype)
    for ranks, way, groups, dtype in itertools.product((2, 3), ("p2p", "all_gather"), (1, 4), LIMITS)
)
# Values of another width than keys, and the cases that gather all keys: documents, a mask, a window.
OTHERS: tuple[Case, ...] = (
    *itertools.product((2, 3), ("wide values", "narrow values"), (4,), LIMITS),
    *itertools.product((2,), ("narrow values, gathered", "narrow values, documents"), (2,), LIMITS),
    *((2, way, 2, torch.float32) for way in ("mask", "window", "narrow values, mask")),
    *itertools.product((2, 3), ("documents",), (1, 4), LIMITS),
)
CHUNK = 11


def name_of(case: Case) -> str:
    ranks, way, groups, dtype = case
    return f"{ranks} ranks, {way}, {groups} groups, {dtype}"


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Return the relative errors of output and gradients, by case and rank."""
    folder = tmp_path_factory.mktemp("context")
    command = [sys.executable, "-W", "ignore", "-m", "tests.worker.test_layers_context", str(folder)]
    subprocess.run(command, env=environment(), cwd=ROOT, check=True, timeout=PATIENCE)
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.parametrize("case", [*CASES, *OTHERS], ids=name_of)
def test_attention_over_a_split_sequence_is_exact(case: Case, errors: dict[str, list[float]]) -> None:
    found = [errors[f"{name_of(case)} at {rank}"] for rank in range(case[0])]
    assert all(max(of_rank) <= LIMITS[case[3]] for of_rank in found), found


@pytest.mark.parametrize("case", [case for case in CASES if case[1] == "p2p"], ids=name_of)
def test_ring_and_gather_give_bitwise_equal_output(case: Case, errors: dict[str, list[float]]) -> None:
    ranks, _, groups, dtype = case
    gathered = name_of((ranks, "all_gather", groups, dtype))
    for rank in range(ranks):
        # Only the output: gradients are summed in a different order.
        assert errors[f"{name_of(case)} at {rank}"][0] == errors[f"{gathered} at {rank}"][0]


def zigzag(whole: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    """Return the part of `[s, ...]` that Megatron assigns to a rank."""
    chunks = whole.chunk(2 * ranks)
    return torch.cat((chunks[rank], chunks[-1 - rank]))


def measure(case: Case, group: dist.ProcessGroup) -> list[float]:
    from megatron.core.transformer.enums import AttnMaskType

    from megatron.flagscale.layers.attention import Attention

    ranks, way, groups, dtype = case
    rank, length = group.rank(), 2 * ranks * CHUNK
    values, _, way = way.partition(" values") if " values" in way else ("", "", way)
    width = {"wide": 24, "narrow": 8}.get(values, 16)
    way = {"": "p2p", ", gathered": "all_gather"}.get(way, way.removeprefix(", "))
    shapes = ((length, 2, 4, 16), (length, 2, groups, 16), (length, 2, groups, width), (length, 2, 4 * width))
    *exact, grad = (tensor.to(dtype).double() for tensor in inputs(*shapes))
    settings = config(num_query_groups=groups, window_size=(5, 0) if way == "window" else None)
    starts, mask = documents(2, length)
    hidden = mask if way in ("documents", "mask") else causal(length, length)
    if way == "window":
        hidden |= torch.arange(length)[:, None] - torch.arange(length) > 5
    module = Attention(
        settings,
        1,
        AttnMaskType.causal,
        "self",
        0.0,
        cp_comm_type=way,
        pg_collection=SimpleNamespace(tp=SimpleNamespace(size=lambda: 1), cp=group),
    )
    leaves = as_leaves([zigzag(tensor, rank, ranks) for tensor in exact], dtype)
    rows = zigzag(mask.permute(2, 0, 1, 3), rank, ranks).permute(1, 2, 0, 3)
    out = module(*leaves, {"documents": starts, "mask": rows}.get(way))
    out.backward(zigzag(grad, rank, ranks).to(dtype))
    whole = as_leaves(exact, torch.float64)
    expected = reference(whole[0], whole[1], whole[2], hidden, 0.25)
    expected.backward(grad)
    pairs = [(out, expected), *((leaf.grad, of_all.grad) for leaf, of_all in zip(leaves, whole, strict=True))]
    return [error(own, zigzag(of_all.detach(), rank, ranks)) for own, of_all in pairs]


def run_rank(rank: int, folder: Path) -> None:
    groups = {ranks: dist.new_group(list(range(ranks))) for ranks in (2, 3)}
    for case in (*CASES, *OTHERS):
        if rank < case[0]:
            found = measure(case, groups[case[0]])
            (folder / f"{name_of(case)} at {rank}.json").write_text(json.dumps(found))


def main(folder: Path) -> int:
    from megatron.flagscale.bootstrap import patch_engine

    patch_engine()
    import megatron.flagscale.layers.attention  # noqa: F401  (once, before the ranks are forked)

    return on_ranks(max(case[0] for case in CASES), folder, lambda rank: run_rank(rank, folder))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
