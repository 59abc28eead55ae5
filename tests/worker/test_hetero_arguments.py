"""The arguments of a rank in unequal meshes, as its engine sees them."""

from __future__ import annotations

import os

import pytest

from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.errors import UserError
from flagscale_testing.ranks.training import MOCK_DATA, MODEL
from megatron.flagscale.hetero.arguments import OwnPart, own_part

pytestmark = pytest.mark.filterwarnings("ignore")

LAYOUT = HeteroLayout((Mesh(tp=2, layers=((3,),)), Mesh(cp=2, dp=2, layers=((1,),))))


def part(monkeypatch: pytest.MonkeyPatch, rank: int, *more: str, ranks: int = 6) -> OwnPart | None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    return own_part([*MODEL, *MOCK_DATA, *more])


def test_each_rank_finds_its_own_degrees(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.flagscale.args import engine_parser

    words = ("--sequence-parallel", "--hetero-layout", LAYOUT.to_json())
    for rank, tp, cp, micro, is_cut in ((1, 2, 1, 2, True), (5, 1, 2, 1, False)):
        own = part(monkeypatch, rank, *words)
        assert own
        values = engine_parser().parse_args(own.argv)
        assert values.tensor_model_parallel_size == tp
        assert values.context_parallel_size == cp
        assert values.micro_batch_size == micro
        assert values.sequence_parallel is is_cut
        assert values.pipeline_model_parallel_layout == "Ettt|tL"
        assert own.sequence_parallel
        with own.engine_world():
            assert os.environ["WORLD_SIZE"] == ("4" if rank == 1 else "8")
        assert os.environ["WORLD_SIZE"] == "6"


def test_without_a_layout_there_is_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    assert part(monkeypatch, 0) is None


@pytest.mark.parametrize(
    ("text", "message"), [("{}", "not a layout of meshes"), (LAYOUT.to_json(), "6 ranks, but the job has 8")]
)
def test_a_wrong_layout_is_refused(monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        part(monkeypatch, 0, "--hetero-layout", text, ranks=8)
