"""What may change when a run resumes from a checkpoint: refused, noticed, or free."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks import recorded
from flagscale.checks.loading import RANKS
from flagscale.checks.recorded import CONTENT, TOKENIZER, record
from flagscale.checks.resume import Saved, resume_notices, resume_violations
from flagscale.checks.schedule import schedule
from flagscale.config.catalog import Catalog
from flagscale.run.checkpoints import ARGUMENTS, TRACKER, newest, read_arguments, write_arguments
from flagscale.vision.arguments import SIZES
from megatron.flagscale.sft.arguments import add_arguments as add_sft_arguments
from megatron.flagscale.vision.arguments import add_arguments
from tests.unit.conftest import TASK

DATA = {"mock_data": False, "train_data_path": ["1", "data/text"]}
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"hidden_size": 128}, "hidden_size", "its weights do not fit; use 64, or start another run"),
    ({"hidden_size": 128, "finetune": True}, "hidden_size", "its weights do not fit"),
    ({"num_experts": 4}, "num_experts", "`num_experts` is 4, but the checkpoint was trained with null"),
    ({"max_position_embeddings": 128}, "max_position_embeddings", "its weights do not fit"),
    ({"mtp_num_layers": 1}, "mtp_num_layers", "its weights do not fit; remove it"),
    (
        {"rotary_base": 5000},
        "rotary_base",
        "or set `finetune: true` to start a new training with its weights",
    ),
    ({"optimizer": "sgd"}, "optimizer", '"sgd", but the checkpoint was trained with "adam"'),
    (
        {"use_distributed_optimizer": True},
        "use_distributed_optimizer",
        "use false, or set `no_load_optim: true` to continue without the optimizer's state",
    ),
    (
        {"train_iters": 20},
        "train_iters",
        "which changes the length of the schedule and the",
    ),
    ({"lr_decay_iters": 5}, "lr_decay_iters", "which changes the length of the schedule"),
    (
        {"lr": 2e-3},
        "lr",
        "but the checkpoint was trained with 0.001, which changes the learning rate; set `over",
    ),
    ({"min_lr": 1e-5}, "min_lr", "which changes the minimum learning rate;"),
    ({"lr_warmup_iters": 2}, "lr_warmup_iters", "which changes the warm-up;"),
    ({"lr_decay_style": "cosine"}, "lr_decay_style", "which changes the decay style;"),
    (
        {"weight_decay": 0.2},
        "weight_decay",
        "which changes the initial weight decay and the final",
    ),
    ({"global_batch_size": 32}, "global_batch_size", "which changes the length of the schedule"),
]
SWITCHES = ("override_opt_param_scheduler", "use_checkpoint_opt_param_scheduler")
NOTICED: list[tuple[dict[str, Any], str, str]] = [
    ({"seed": 7}, "seed", "`seed` is 7, but the checkpoint was trained with 1234"),
    ({"clip_grad": 2.0}, "clip_grad", "`clip_grad` is 2.0"),
    ({"train_iters": 20, SWITCHES[0]: True}, "train_iters", "which changes the length of the schedule and"),
    ({"lr": 2e-3, SWITCHES[0]: True}, "lr", "trained with 0.001, which changes the learning rate"),
    ({"lr": 2e-3, SWITCHES[1]: True}, "lr", "which has no effect on the learning rate (`use_checkpoint"),
    ({CONTENT: "other"}, "train_data_path", "the checkpoint was trained with other data"),
    ({"train_data_path": ["2", "data/text"]}, "train_data_path", "other data"),
    ({"mock_data": True}, "mock_data", "other data"),
    ({"lr": 2e-3, "optimizer": "sgd", "no_load_optim": True}, "lr", "which changes the learning rate"),
    ({"train_iters": 20, "skip_train": True}, "train_iters", "which changes the length of the schedule"),
    ({TOKENIZER: "other"}, "tokenizer_model", "the checkpoint was trained with another tokenizer"),
    ({"tokenizer_type": "TikTokenizer", TOKENIZER: ""}, "tokenizer_type", '"TikTokenizer"'),
]  # fmt: skip
FREE: list[dict[str, Any]] = [
    {},
    {"kv_channels": 16, "ffn_hidden_size": 256},  # what the engine derives
    {"moe_aux_loss_coeff": [0.0]},
    {"moe_use_upcycling": True, "num_experts": 4},
    {CONTENT: ""},  # not all files are here: their paths may differ
    {CONTENT: "", "train_data_path": ["1", "elsewhere/text"]},
    {"valid_data_path": ["other/text"]},
    {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
    {"micro_batch_size": 1, "log_interval": 7, "save_interval": 3, "eval_iters": 3},
    {"train_data_path": ["1", "elsewhere/text"]},  # the same data at another place
    {"seed": 7, "lr": 2e-3, "finetune": True},
    {"window_size": "128,0"},  # as the launcher holds it
    {"num_query_groups": 4, "kv_lora_rank": 7, "moe_router_topk": 1, "rope_scaling_factor": 4.0},  # not used
    {TOKENIZER: ""},  # not known on this host
]


DEEPSEEK: dict[str, Any] = {
    "num_experts": 8,
    "moe_ffn_hidden_size": 64,
    "moe_shared_expert_intermediate_size": 64,
    "moe_router_score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "moe_router_num_groups": 4,
    "moe_router_group_topk": 2,
    "mtp_num_layers": 1,
    "mtp_loss_scaling_factor": 0.1,
}
NEW_TRAINING = "or set `finetune: true` to start a new training with its weights"
OF_DEEPSEEK: list[tuple[dict[str, Any], str, str]] = [
    ({"mtp_num_layers": 2}, "mtp_num_layers", "its weights do not fit; use 1"),
    ({"mtp_num_layers": None}, "mtp_num_layers", NEW_TRAINING),
    ({"mtp_use_repeated_layer": True}, "mtp_use_repeated_layer", "its weights do not fit"),
    ({"moe_router_enable_expert_bias": False}, "moe_router_enable_expert_bias", NEW_TRAINING),
    ({"moe_shared_expert_gate": True}, "moe_shared_expert_gate", "its weights do not fit"),
    ({"moe_router_group_topk": 1}, "moe_router_group_topk", NEW_TRAINING),
    ({"moe_router_topk_scaling_factor": 2.5}, "moe_router_topk_scaling_factor", NEW_TRAINING),
    ({"moe_apply_probs_on_input": True}, "moe_apply_probs_on_input", NEW_TRAINING),
    ({"glu_linear_offset": 1.0}, "glu_linear_offset", NEW_TRAINING),
    ({"activation_func_clamp_value": 7.0}, "activation_func_clamp_value", NEW_TRAINING),
    ({"no_rope_freq": 2}, "no_rope_freq", NEW_TRAINING),
    ({"window_attn_skip_freq": 2}, "window_attn_skip_freq", NEW_TRAINING),
    ({"moe_latent_size": 16}, "moe_latent_size", "its weights do not fit"),
    ({"softmax_type": "learnable"}, "softmax_type", "its weights do not fit"),
]
NOTICED_OF_DEEPSEEK = (
    *("mtp_loss_scaling_factor", "moe_router_bias_update_rate", "moe_z_loss_coeff"),
    *("moe_expert_capacity_factor", "moe_input_jitter_eps"),
)


OF_PICTURES: dict[str, Any] = {
    "vision_model_type": "siglip",
    "vision_hidden_size": None,
    "mm_patch_merge_type": "flat",
    "image_aspect_ratio": "square",
    "several_images": "tiled",
    "freeze_LM": True,
    "freeze_ViT": False,
}
WRONG_OF_PICTURES: list[tuple[dict[str, Any], str, str]] = [
    ({"vision_model_type": "clip"}, "vision_model_type", 'its weights do not fit; use "siglip"'),
    ({"vision_hidden_size": 64}, "vision_hidden_size", "its weights do not fit; remove it"),
    ({"image_aspect_ratio": "pad"}, "image_aspect_ratio", NEW_TRAINING),
    (
        {"freeze_LM": False},
        "freeze_LM",
        "use true, or set `no_load_optim: true` to continue without the optimizer's state",
    ),
]


def run_of(catalog: Catalog) -> dict[str, Any]:
    """Return the arguments of a run by dest, and what identifies its data and tokenizer."""
    defaults = {option.dest: option.default for option in catalog.options.values()}
    return {**defaults, **TASK, **DATA, "window_size": (128, 0), CONTENT: "data", TOKENIZER: "tokenizer"}


@pytest.fixture
def values(catalog: Catalog) -> dict[str, Any]:
    return run_of(catalog)


@pytest.fixture
def saved(values: dict[str, Any], tmp_path: Path) -> Saved:
    """Return the record of that run, as read from a checkpoint."""
    write_arguments(tmp_path, record(values, values[CONTENT], values[TOKENIZER]))
    stored = read_arguments(tmp_path)
    assert stored is not None
    return Saved("the checkpoint", stored)


@pytest.mark.parametrize(("changes", "name", "says"), WRONG)
def test_a_change_that_is_refused(
    saved: Saved, values: dict[str, Any], changes: dict[str, Any], name: str, says: str
) -> None:
    found = list(resume_violations(saved, values | changes))
    assert [blamed for blamed, _ in found] == [name]
    assert says in found[0][1]


@pytest.mark.parametrize(("changes", "name", "says"), OF_DEEPSEEK)
def test_parts_of_a_deepseek_model_stay(
    values: dict[str, Any], changes: dict[str, Any], name: str, says: str
) -> None:
    before = values | DEEPSEEK
    ((blamed, what),) = resume_violations(Saved("the checkpoint", record(before)), before | changes)
    assert blamed == name
    assert says in what
    kept = says == NEW_TRAINING
    starting = before | changes | {"finetune": True}
    assert bool(list(resume_violations(Saved("the checkpoint", record(before)), starting))) != kept


@pytest.mark.parametrize("name", NOTICED_OF_DEEPSEEK)
def test_a_change_of_a_deepseek_models_losses_is_noticed(values: dict[str, Any], name: str) -> None:
    before = values | DEEPSEEK
    saved, now = Saved("the checkpoint", record(before)), before | {name: 0.5}
    assert list(resume_violations(saved, now)) == []
    assert [blamed for blamed, _ in resume_notices(saved, now)] == [name]


@pytest.mark.parametrize(("changes", "name", "says"), NOTICED)
def test_a_change_that_is_noticed(
    saved: Saved, values: dict[str, Any], changes: dict[str, Any], name: str, says: str
) -> None:
    assert list(resume_violations(saved, values | changes)) == []
    found = list(resume_notices(saved, values | changes))
    assert {blamed for blamed, _ in found} == {name}
    assert any(says in what for _, what in found)


@pytest.mark.parametrize("changes", FREE)
def test_a_change_that_is_free(saved: Saved, values: dict[str, Any], changes: dict[str, Any]) -> None:
    assert list(resume_violations(saved, values | changes)) == []
    assert list(resume_notices(saved, values | changes)) == []


LATENT = {"multi_latent_attention": True, "q_lora_rank": 24, "rotary_scaling_factor": 40.0, "mscale": 0.7}


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"q_lora_rank": None}, ["q_lora_rank"]),
        ({"kv_lora_rank": 16, "v_head_dim": 64}, ["kv_lora_rank", "v_head_dim"]),
        ({"rope_type": "rope"}, ["rope_type"]),
        ({"rotary_scaling_factor": 4.0, "mscale": 1.0}, ["rotary_scaling_factor", "mscale"]),
        ({"yarn_beta_fast": 16.0}, ["yarn_beta_fast"]),
        ({"rope_type": "yarn"}, []),  # what the engine derives
        ({"kv_channels": 48}, []),  # which it does not read
    ],
)
def test_latent_attention_keeps_its_sizes_and_positions(
    values: dict[str, Any], changes: dict[str, Any], refused: list[str]
) -> None:
    before = Saved("the checkpoint", record(values | LATENT))
    assert [name for name, _ in resume_violations(before, values | LATENT | changes)] == refused


def test_all_refusals_are_reported_together(saved: Saved, values: dict[str, Any]) -> None:
    changes = {"hidden_size": 128, "num_layers": 8, "rotary_base": 5000, "lr": 2e-3}
    assert {name for name, _ in resume_violations(saved, values | changes)} == {*changes}


def test_data_without_a_known_content_is_compared_by_its_path(saved: Saved, values: dict[str, Any]) -> None:
    unknown = Saved("the checkpoint", {**saved.values, CONTENT: ""})
    assert list(resume_notices(unknown, values)) == []
    ((name, _),) = resume_notices(unknown, values | {"train_data_path": ["1", "data/new"]})
    assert name == "train_data_path"


def test_a_record_with_other_types_counts_as_unknown(saved: Saved, values: dict[str, Any]) -> None:
    odd = {
        **saved.values,
        "hidden_size": "x",
        "lr_warmup_fraction": "a",
        "global_batch_size": [1, 2],
        "lr_warmup_iters": "b",
    }
    assert list(resume_violations(Saved("the checkpoint", odd), values)) == []


def test_the_engine_derives_iterations_from_samples(values: dict[str, Any]) -> None:
    in_samples = {**values, "train_iters": None, "train_samples": 1000}
    by_engine = {**in_samples, "train_iters": 62}
    saved = Saved("the checkpoint", record({**by_engine, "global_batch_size": 8, "train_iters": 125}))
    assert not any(name == "train_iters" for name, _ in resume_violations(saved, by_engine))


def test_samples_and_iterations_are_compared_in_samples(values: dict[str, Any]) -> None:
    in_iters = schedule(values)
    in_samples = schedule({**values, "train_iters": None, "train_samples": 160})
    assert in_iters == in_samples
    assert in_iters["the length of the schedule"] == 160
    unknown = schedule({**values, "global_batch_size": None})
    assert unknown["the length of the schedule"] is None


@pytest.mark.parametrize(("changes", "name", "what"), WRONG_OF_PICTURES)
def test_a_change_of_a_model_with_pictures_is_refused(
    values: dict[str, Any], changes: dict[str, Any], name: str, what: str
) -> None:
    before = Saved("the checkpoint", record(values | OF_PICTURES))
    ((found, text),) = resume_violations(before, values | OF_PICTURES | changes)
    assert found == name
    assert what in text


def test_sizes_that_the_tower_has_anyway_are_no_change(values: dict[str, Any]) -> None:
    tiled = {"image_aspect_ratio": "anyres_max_9", "mm_patch_merge_type": "spatial_unpad"}
    unset = {**dict.fromkeys((*SIZES, "image_grid_pinpoints")), "image_token": "<image>"}
    text = {"vision_model_type": "siglip", "several_images": "tiled", "video_token": "<video>"}
    pictures = {**values, **unset, **tiled, **text, "video_frames": 8}
    saved = Saved("the checkpoint", record(pictures))
    given = {"vision_patch_size": 14, "vision_image_size": 384, "image_grid_pinpoints": "(1x1),...,(6x6)"}
    assert not [*resume_violations(saved, pictures | given)]
    for name, other in {"vision_patch_size": 16, "image_grid_pinpoints": "(1x1),...,(2x2)"}.items():
        assert [blamed for blamed, _ in resume_violations(saved, pictures | {name: other})] == [name]


def test_a_model_of_text_alone_has_no_vision_tower(values: dict[str, Any]) -> None:
    now = {**values, **OF_PICTURES, "pretrained_checkpoint": "text"}
    ((blamed, what),) = resume_violations(Saved("the checkpoint", record(values), resumes=False), now)
    assert blamed == "pretrained_checkpoint"
    assert "a model of text alone, without a vision tower" in what
    drawn = {**now, "dist_ckpt_strictness": "log_all"}
    assert not list(resume_violations(Saved("the checkpoint", record(values), resumes=False), drawn))


@pytest.mark.parametrize(
    "changes", [{"freeze_ViT": True}, {"chat_template": "vicuna"}, {"several_images": "single"}]
)
def test_a_change_of_what_is_trained_is_noticed(values: dict[str, Any], changes: dict[str, Any]) -> None:
    before, now = Saved("the checkpoint", record(values | OF_PICTURES)), values | OF_PICTURES | changes
    assert not [*resume_violations(before, now)]
    assert [name for name, _ in resume_notices(before, now)] == [*changes]


def test_a_frozen_part_is_trained_from_here_on_without_the_states_of_the_optimizer(
    values: dict[str, Any],
) -> None:
    before = Saved("the checkpoint", record(values | OF_PICTURES))
    for switch in ("finetune", "no_load_optim"):
        assert not [*resume_violations(before, values | OF_PICTURES | {"freeze_LM": False, switch: True})]


def _dests(catalog: Catalog) -> dict[str, str]:
    """Return the argument (by dest) of each key of the engine, `train_llava` and `train_gpt_sft`."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    add_sft_arguments(parser)
    own = {action.dest: action.dest for action in parser._actions}
    return {key: option.dest for key, option in catalog.by_name.items()} | own


def test_every_key_is_an_argument_of_a_training_program(catalog: Catalog) -> None:
    dests = {*_dests(catalog).values()}
    assert set(recorded.RECORDED) - {RANKS} <= dests
    groups = (recorded.SHAPE, recorded.FUNCTION)
    assert not set(groups[0]) & set(groups[1])


def test_the_table_in_the_docs_is_the_table_of_the_code(catalog: Catalog) -> None:
    text = (Path(__file__).parents[2] / "docs" / "resuming.md").read_text("utf-8")
    keys = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in text.splitlines() if line[:3] == "| `"]
    dests = _dests(catalog)
    rows = [{dests[key] for key in row} for row in keys]
    groups = (
        *(recorded.SHAPE, recorded.FUNCTION, recorded.PARTS_OF_MODEL, recorded.FROZEN),
        *(recorded.OPTIMIZER, recorded.NOTICE),
    )
    assert rows == [set(group) for group in groups]


def test_the_newest_checkpoint(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    (tmp_path / TRACKER).write_text("release")
    assert newest(tmp_path) is None
    (tmp_path / TRACKER).write_text("12\n")
    assert newest(tmp_path) is None
    (tmp_path / "iter_0000012").mkdir()
    assert newest(tmp_path) == tmp_path / "iter_0000012"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 2, "arguments": {}}', "\xff"])
def test_a_record_that_cannot_be_read_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / ARGUMENTS).write_text(text, encoding="latin-1")
    assert read_arguments(tmp_path) is None
