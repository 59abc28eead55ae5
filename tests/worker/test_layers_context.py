"""Attention over a sequence split across ranks, compared with plain float64 attention to the whole sequence.

Run as a module, this file is the job under test: it forks the ranks, and each writes the errors it found.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from flagscale_testing.ranks.functions import on_ranks
from flagscale_testing.ranks.training import PATIENCE, ROOT, environment
from tests.worker.test_layers import (
    ALONE,
    LIMITS,
    as_leaves,
    causal,
    config,
    documents,
    error,
    inputs,
    reference,
)

CHUNK = 11
HEADS = 12
EXACT = {**LIMITS, torch.float64: 1e-13}


@dataclass(frozen=True)
class Case:
    """Attention of one kind (plain, documents, ...) on some ranks, by one `cp_comm_type`.

    Queries and keys have 16 elements per head, values have `width`.
    """

    ranks: int
    way: str
    kind: str
    groups: int
    dtype: torch.dtype
    width: int = 16

    def __str__(self) -> str:
        return ", ".join(map(str, astuple(self)))


PLAIN = [Case(*one) for one in itertools.product((2, 3), ("p2p", "all_gather"), ("plain",), (1, 4), LIMITS)]
WIDTHS = [
    *(Case(*one) for one in itertools.product((2, 3), ("p2p",), ("plain",), (4,), LIMITS, (8, 24))),
    *(Case(2, way, "plain", 2, dtype, 8) for way in ("all_gather", "a2a", "a2a+p2p") for dtype in LIMITS),
    *(Case(2, way, "documents", 2, dtype, 8) for way in ("p2p", "a2a") for dtype in LIMITS),
    *(Case(2, way, "mask", 2, torch.float32, 8) for way in ("p2p", "a2a")),
]
# These gather all keys whatever the type.
GATHERED = [
    *(Case(2, "p2p", kind, 4, torch.float32) for kind in ("mask", "window")),
    *(Case(ranks, "p2p", "documents", *one) for ranks in (2, 3) for one in itertools.product((1, 4), LIMITS)),
]
MASKED = ("mask", "window", "documents")
# Groups that the ranks divide, that are repeated for all ranks, and (4 groups for 3 ranks) neither.
EXCHANGED = [
    *(Case(ranks, "a2a", "plain", *one) for ranks in (2, 3) for one in itertools.product((1, 4, 12), EXACT)),
    *(Case(ranks, "a2a", kind, 4, torch.float64) for ranks in (2, 3) for kind in MASKED),
    *(Case(ranks, "a2a", "plain", 12, torch.float64, 24) for ranks in (2, 3)),
    *(Case(ranks, "a2a", "dropout", 12, torch.float64) for ranks in (2, 3)),
]
# Pairs of ranks exchange, then the sequence stays split over two or three pairs.
NESTED = [
    *(Case(4, "a2a+p2p", kind, 4, torch.float32) for kind in ("plain", *MASKED)),
    *(Case(6, "a2a+p2p", "plain", groups, torch.float32) for groups in (1, 4)),
]
CASES = [*PLAIN, *WIDTHS, *GATHERED, *EXCHANGED, *NESTED]


Found = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Return what each rank of each case found."""
    folder = tmp_path_factory.mktemp("context")
    command = [sys.executable, "-W", "ignore", "-m", "tests.worker.test_layers_context", str(folder)]
    subprocess.run(command, env=environment(), cwd=ROOT, check=True, timeout=PATIENCE)
    return {
        str(case): [json.loads((folder / f"{case} at {rank}.json").read_text()) for rank in range(case.ranks)]
        for case in CASES
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_over_a_split_sequence_is_exact(case: Case, found: Found) -> None:
    for of_rank in found[str(case)]:
        assert max(of_rank["errors"]) <= EXACT[case.dtype], of_rank


@pytest.mark.parametrize("case", [case for case in PLAIN if case.way == "p2p"], ids=str)
def test_ring_and_gather_give_bitwise_equal_output(case: Case, found: Found) -> None:
    gathered = str(replace(case, way="all_gather"))
    for ring, other in zip(found[str(case)], found[gathered], strict=True):
        # Only the output: gradients are summed in a different order.
        assert ring["errors"][0] == other["errors"][0]


@pytest.mark.parametrize("case", [case for case in EXCHANGED if case.kind != "dropout"], ids=str)
def test_an_exchange_gives_the_bits_of_one_process(case: Case, found: Found) -> None:
    """So it does not matter how the sequence is split: all positions of a head meet before attention."""
    for of_rank in found[str(case)]:
        assert of_rank["bitwise"][:2] == [True, True]  # the output, and the gradient of the queries
        if not case.groups % case.ranks:  # else, the gradients of repeated groups are summed
            assert all(of_rank["bitwise"])


KEEPING = [
    *(case for case in EXCHANGED if case.kind in ("plain", "documents") and not case.groups % case.ranks),
    *(case for case in NESTED if case.kind == "plain" and case.groups == 4),
]


@pytest.mark.parametrize("case", KEEPING, ids=str)
def test_an_exchange_keeps_no_more_than_attention(case: Case, found: Found) -> None:
    """Each rank keeps its share of what one process keeps: queries, keys, values, output, log-sum-exp."""
    for kept, alone in (of_rank["kept"] for of_rank in found[str(case)]):
        assert kept * case.ranks == alone


def zigzag(whole: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    """Return the part of `[s, ...]` that Megatron assigns to a rank."""
    chunks = whole.chunk(2 * ranks)
    return torch.cat((chunks[rank], chunks[-1 - rank]))


def kept_bytes(compute: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Return a result and the bytes that it keeps for its gradients; views of one tensor count once."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = compute()
    return out, sum(storage.nbytes() for storage in storages.values())


def measure(case: Case, groups: SimpleNamespace) -> dict[str, Any]:
    from megatron.core.transformer.enums import AttnMaskType

    from megatron.flagscale.layers.attention import Attention

    rank, length = groups.cp.rank(), 2 * case.ranks * CHUNK
    *exact, grad = inputs(
        (length, 2, HEADS, 16),
        (length, 2, case.groups, 16),
        (length, 2, case.groups, case.width),
        (length, 2, HEADS * case.width),
    )
    *exact, grad = (tensor.to(case.dtype).double() for tensor in (*exact, grad))
    settings = config(
        heads=HEADS, num_query_groups=case.groups, window_size=(5, 0) if case.kind == "window" else None
    )
    settings.sequence_parallel = True  # then no tracker of random states is asked for
    starts, mask = documents(2, length)
    hidden = mask if case.kind in ("documents", "mask") else causal(length, length)
    if case.kind == "window":
        hidden |= torch.arange(length)[:, None] - torch.arange(length) > 5

    def attend(leaves: Sequence[torch.Tensor], given: Any, groups: SimpleNamespace, way: str) -> torch.Tensor:
        dropout = 0.4 if case.kind == "dropout" else 0.0
        module = Attention(
            *(settings, 1, AttnMaskType.causal, "self", dropout), cp_comm_type=way, pg_collection=groups
        )
        torch.manual_seed(1)
        out: torch.Tensor = module(*leaves, given)
        return out

    def part(whole: torch.Tensor) -> torch.Tensor:
        return zigzag(whole.detach(), rank, case.ranks)

    leaves = as_leaves([part(tensor) for tensor in exact], case.dtype)
    rows = part(mask.permute(2, 0, 1, 3)).permute(1, 2, 0, 3)
    given = {"documents": starts, "mask": rows}.get(case.kind)
    out, kept = kept_bytes(lambda: attend(leaves, given, groups, case.way))
    out.backward(part(grad).to(case.dtype))
    whole = as_leaves(exact, torch.float64)
    if case.kind == "dropout":  # every rank draws for its own heads
        shares = zip(*(leaf.chunk(case.ranks, 2) for leaf in whole), strict=True)
        expected = torch.cat([attend(share, None, ALONE, "p2p") for share in shares], -1)
    else:
        expected = reference(whole[0], whole[1], whole[2], hidden, 0.25)
    expected.backward(grad)
    same = as_leaves([tensor.detach().clone() for tensor in exact], case.dtype)
    given_alone = {"documents": starts, "mask": mask}.get(case.kind)
    alone, kept_alone = kept_bytes(lambda: attend(same, given_alone, ALONE, "p2p"))
    alone.backward(grad.to(case.dtype))
    own = [out, *(leaf.grad for leaf in leaves)]
    return {
        "kept": (kept, kept_alone),
        "errors": [
            error(one, part(of_all))
            for one, of_all in zip(own, [expected, *(leaf.grad for leaf in whole)], strict=True)
        ],
        "bitwise": [
            torch.equal(one, part(of_all))
            for one, of_all in zip(own, [alone, *(leaf.grad for leaf in same)], strict=True)
        ],
    }


def run_rank(rank: int, folder: Path) -> None:
    groups = {ranks: of_ranks(rank, ranks) for ranks in {case.ranks: None for case in CASES}}
    for case in CASES:
        if rank < case.ranks:
            (folder / f"{case} at {rank}.json").write_text(json.dumps(measure(case, groups[case.ranks])))


def of_ranks(rank: int, ranks: int) -> SimpleNamespace:
    """Return the groups of the first ranks, as Megatron creates them for sizes `[2, ranks / 2]`."""
    pairs = dist.new_subgroups_by_enumeration([[one, one + 1] for one in range(0, ranks - 1, 2)])[0]
    across = dist.new_subgroups_by_enumeration([list(range(first, ranks, 2)) for first in (0, 1)])[0]
    return SimpleNamespace(
        tp=SimpleNamespace(size=lambda: 1), cp=dist.new_group(list(range(ranks))), hcp=[pairs, across]
    )


def main(folder: Path) -> int:
    from megatron.flagscale.bootstrap import patch_engine

    patch_engine()
    import megatron.flagscale.layers.attention  # noqa: F401  (once, before the ranks are forked)

    return on_ranks(max(case.ranks for case in CASES), folder, lambda rank: run_rank(rank, folder))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
