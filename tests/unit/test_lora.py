"""The rules for trainings of adapters, and for the checkpoints that they load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flagscale.checks import lora
from flagscale.checks.pictures import PARTS
from flagscale.checks.recorded import record
from flagscale.checks.resume import Saved, resume_notices, resume_violations
from tests.unit.rules import Example

MLA = {"multi_latent_attention": True, "q_lora_rank": 8, "swiglu": True}
GOOD: dict[str, Any] = {
    "lora_rank": 4,
    "lora_alpha": 8.0,
    "lora_dropout": 0.0,
    "lora_targets": None,
    "pretrained_checkpoint": "base",
    "load": "run",
    "save": "run",
    "transformer_impl": "torch",
    "ckpt_format": "torch_dist",
    "swiglu": True,
    "group_query_attention": True,
    "num_query_groups": 2,
    "tensor_model_parallel_size": 2,
}
NO_ADAPTERS = dict.fromkeys(lora.LORA)
REFUSED = (
    *("use_torch_fsdp2", "use_megatron_fsdp", "fp8", "fp4", "moe_grouped_gemm", "spec"),
    *("finetune_with_optim", *PARTS),
)
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"lora_rank": 0}, "lora_rank", "must be at least 1, not 0"),
    ({"lora_rank": -4}, "lora_rank", "must be at least 1, not -4"),
    ({"lora_alpha": 0.0}, "lora_alpha", "must be more than 0, not 0"),
    ({"lora_dropout": 1.0}, "lora_dropout", "at least 0 and less than 1, not 1"),
    ({"lora_dropout": -0.1}, "lora_dropout", "at least 0 and less than 1, not -0.1"),
    ({"lora_targets": ["q_prj"]}, "lora_targets", "no projection; did you mean `q_proj`?"),
    ({"lora_targets": ["q_b_proj"]}, "lora_targets", "has no such projection; it needs `multi_latent_"),
    ({"lora_targets": ["linear_kv_up_proj"]}, "lora_targets", "no such projection; it has q_proj, k_proj"),
    ({"lora_targets": ["linear_q_proj"]}, "lora_targets", "has no such projection"),
    ({"lora_targets": ["gate_proj"], "swiglu": False}, "lora_targets", "it needs `swiglu: true`"),
    ({**MLA, "lora_targets": ["linear_qkv"]}, "lora_targets", "it has q_a_proj, q_b_proj, kv_a_proj"),
    ({**MLA, "lora_targets": ["k_proj"]}, "lora_targets", "has no such projection"),
    ({"pretrained_checkpoint": None}, "pretrained_checkpoint", "`lora_rank` needs `pretrained_checkpoint`"),
    ({"load": "./base"}, "load", "`load` and `pretrained_checkpoint` are the same folder"),
    ({"save": "base"}, "save", "`save` and `pretrained_checkpoint` are the same folder"),
    ({"ckpt_format": "torch"}, "ckpt_format", "needs `ckpt_format: torch_dist`, not torch"),
    ({"transformer_impl": "transformer_engine"}, "transformer_impl", "torch` or `local`, not transformer_"),
    ({"tensor_model_parallel_size": 4}, "num_query_groups", "is less than tensor_model_parallel_size 4"),
    ({"num_experts": 4, "lora_dropout": 0.1}, "lora_dropout", "needs `expert_tensor_parallel_size: 1`"),
    ({"hetero_layout": "{}"}, "hetero_layout", "`hetero_process_meshes` cannot be combined with `lora_rank`"),
    *(({name: True}, name, f"`{name}` cannot be combined with `lora_rank`") for name in REFUSED),
    ({**NO_ADAPTERS, "lora_alpha": 8.0}, "lora_alpha", "has no effect without `lora_rank`"),
    ({**NO_ADAPTERS, "lora_dropout": 0.1}, "lora_dropout", "has no effect without `lora_rank`"),
    ({**NO_ADAPTERS, "lora_targets": ["q_proj"]}, "lora_targets", "has no effect without `lora_rank`"),
]
RUN = {**GOOD, "num_layers": 2, lora.BASE: "of the base", "lora_targets": ["linear_qkv"]}
OF_OTHERS: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({}, {"lora_rank": 8, "lora_alpha": 16.0}, "lora_rank", "is 8, but the checkpoint was trained with 4"),
    ({}, {"lora_alpha": None}, "lora_alpha", "is 4, but the checkpoint was trained with 8: use 8"),
    (
        {},
        {"lora_targets": ["q_proj"]},
        "lora_targets",
        "are q_proj, but the checkpoint has q_proj, k_proj, v_",
    ),
    ({}, {"lora_base": "of another"}, "pretrained_checkpoint", "adapters of another base than base: use the"),
    ({}, NO_ADAPTERS, "load", "holds only adapters of rank 4, not their base: set `lora_rank: 4`"),
    (NO_ADAPTERS, {}, "load", "holds a whole model, but this run trains adapters (`lora_rank: 4`): name it"),
]
"""What the run that saved a checkpoint had instead of `RUN`, what this one has, and what is wrong."""


@pytest.mark.parametrize(("changes", "name", "says"), WRONG, ids=str)
def test_what_adapters_cannot_be_is_reported_once(changes: dict[str, Any], name: str, says: str) -> None:
    ((blamed, what),) = lora.lora_violations(GOOD | changes)
    assert blamed == name
    assert says in what


@pytest.mark.parametrize(
    "changes",
    [
        {},
        NO_ADAPTERS,
        {"lora_targets": "q_proj down_proj"},
        {"lora_targets": ["linear_proj", "linear_fc1"], "swiglu": False},
        {"lora_targets": ["o_proj", "up_proj"], "tensor_model_parallel_size": 4},
        {**MLA, "lora_targets": ["linear_q_up_proj", "kv_a_proj_with_mqa"]},
        {"lora_dropout": 0.9, "num_experts": 4, "expert_tensor_parallel_size": 1},
    ],
    ids=str,
)
def test_what_is_supported_is_not_reported(changes: dict[str, Any]) -> None:
    assert list(lora.lora_violations(GOOD | changes)) == []


def test_targets_are_projections_in_the_order_of_the_model() -> None:
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert lora.projections(GOOD) == every
    assert lora.projections(GOOD | {"lora_targets": ["linear_fc1", "q_proj"]}) == [every[0], *every[4:6]]
    assert lora.projections({"lora_targets": ["linear_fc1"]}) == ["up_proj"]
    assert lora.projections(MLA)[:4] == ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"]
    assert lora.projections({"multi_latent_attention": True})[0] == "q_proj"


@pytest.mark.parametrize(("before", "now", "name", "says"), OF_OTHERS, ids=str)
def test_a_checkpoint_of_something_else_is_refused(
    before: dict[str, Any], now: dict[str, Any], name: str, says: str
) -> None:
    saved = Saved("the checkpoint", {**record(RUN | before), lora.BASE: "of the base"})
    ((blamed, what),) = resume_violations(saved, RUN | now)
    assert blamed == name
    assert says in what


@pytest.mark.parametrize(
    "changes", [{}, {"lora_targets": ["v_proj", "q_proj", "k_proj"]}, {"pretrained_checkpoint": "moved"}]
)
def test_the_same_adapters_continue(changes: dict[str, Any]) -> None:
    saved = Saved("the checkpoint", record(RUN))
    assert list(resume_violations(saved, RUN | changes)) == []
    assert list(resume_notices(saved, RUN | changes)) == []


def test_other_dropout_is_a_notice() -> None:
    ((name, what),) = resume_notices(Saved("the checkpoint", record(RUN)), RUN | {"lora_dropout": 0.1})
    assert name == "lora_dropout"
    assert "`lora_dropout` is 0.1" in what


def test_the_base_of_adapters_has_none() -> None:
    base = Saved("the checkpoint", record(RUN | NO_ADAPTERS), resumes=False, is_base=True)
    assert list(resume_violations(base, RUN)) == []
    ((name, what),) = resume_violations(base, RUN | {"num_layers": 4})
    assert name == "num_layers"
    adapters = Saved("the checkpoint", record(RUN), resumes=False, is_base=True)
    ((name, what),) = resume_violations(adapters, RUN)
    assert name == "pretrained_checkpoint"
    assert "merge them into the base first" in what


def test_a_link_to_the_folder_of_the_base_is_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "base")
    folders = {"pretrained_checkpoint": f"{tmp_path}/base", "save": f"{tmp_path}/link"}
    ((name, _),) = lora.lora_violations(GOOD | folders)
    assert name == "save"


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_alpha_that_is_no_number_is_refused_once(value: float) -> None:
    keys = {"transformer_impl": "torch", "lora_rank": 4, "pretrained_checkpoint": "base", "lora_alpha": value}
    found = [one.what for one in Example(keys, "").report() if one.where == "train.lora_alpha"]
    assert found == [f"`lora_alpha` must be a number, not {value}"]
