"""What may change between the run that saved a checkpoint and the run that resumes from it: a table of keys.

Keys that are not in the table are free: parallel degrees, logging, saving, speed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flagscale.checks import pictures
from flagscale.checks.blend import NAMES, TRAINING, parse
from flagscale.checks.latent import MLA, ONLY_WITH_YARN, uses_yarn
from flagscale.checks.loading import READING, loading_violations
from flagscale.checks.lora import DROPOUT, LORA, adapter_violations
from flagscale.checks.schedule import PARTS, schedule
from flagscale.checks.stablelm2 import KEYS
from flagscale.errors import UserError, Violation
from flagscale.vision.arguments import SIZES, vision_of

SHAPE = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels"),
    *("group_query_attention", "num_query_groups", "multi_latent_attention", "q_lora_rank", "kv_lora_rank"),
    *("qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim", "qk_layernorm", "normalization", "swiglu"),
    *("add_bias_linear", "add_qkv_bias", "position_embedding_type", "untie_embeddings_and_output_weights"),
    *("num_experts", "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size", "moe_layer_freq"),
    *("moe_latent_size", "mtp_use_repeated_layer", "attention_output_gate"),
    *("vision_model_type", "vision_image_size", "vision_patch_size", "vision_num_layers"),
    *("vision_hidden_size", "vision_ffn_hidden_size", "vision_num_attention_heads", "mm_patch_merge_type"),
)
"""Another value gives weights of another shape or name: refused, whatever else is set."""
FUNCTION = (
    "moe_router_group_best",
    *("squared_relu", "quick_geglu", "rotary_base", "rotary_percent", "rotary_interleaved"),
    *("use_rope_scaling", "rope_scaling_factor", "rotary_seq_len_interpolation_factor", "layernorm_epsilon"),
    *("rope_type", *ONLY_WITH_YARN, "layernorm_zero_centered_gamma", "window_size"),
    *("moe_router_topk", "moe_router_score_function", "moe_router_pre_softmax", "moe_router_num_groups"),
    *("moe_router_group_topk", "moe_router_topk_scaling_factor", "moe_apply_probs_on_input", "no_rope_freq"),
    *("window_attn_skip_freq", "activation_func_clamp_value", "glu_linear_offset"),
    *("image_aspect_ratio", "image_grid_pinpoints"),
)
"""Another value makes the same weights compute something else: refused, unless `finetune` starts a new
training with these weights."""
PARTS_OF_MODEL = ("mtp_num_layers", "moe_router_enable_expert_bias", "moe_shared_expert_gate")
"""A larger value needs weights that the checkpoint does not have: refused as for `SHAPE`. A smaller one
leaves some of its weights out: refused as for `FUNCTION`."""
FROZEN = pictures.PARTS
"""To train what was frozen needs states of the optimizer that the checkpoint does not have: refused, unless
they are not loaded. To freeze more is allowed, with a notice."""
DISTRIBUTED = "use_distributed_optimizer"
OPTIMIZER = ("optimizer", DISTRIBUTED, *dict.fromkeys(name for names in PARTS.values() for name in names))
"""Refused if the optimizer's state or its schedule would change, unless neither is loaded; a switch says
which of two schedules counts."""
NOTICE = (
    *("seed", "global_batch_size", "seq_length", "split", "step_batch_size_schedule", "attention_dropout"),
    *("hidden_dropout", "clip_grad", "adam_beta1", "adam_beta2", "adam_eps", "bf16", "fp16", "eod_mask_loss"),
    *("reset_attention_mask", "reset_position_ids", "moe_aux_loss_coeff", "moe_router_load_balancing_type"),
    *("moe_z_loss_coeff", "moe_router_bias_update_rate", "moe_router_dtype", "mtp_loss_scaling_factor"),
    *("mtp_detach_heads", "moe_expert_capacity_factor", "moe_pad_expert_input_to_capacity"),
    *("moe_token_drop_policy", "moe_input_jitter_eps", "calculate_per_token_loss"),
    *("lr_wsd_decay_iters", "lr_wsd_decay_samples", "lr_wsd_decay_style", "max_position_embeddings"),
    DROPOUT,
    *("several_images", "video_frames", "image_token", "video_token", "packing_buffer_size"),
    *("no_packing", "apply_sft_dataset_separated_loss_mask_if_existed"),
    *("chat_template", *KEYS),
)
"""The run continues and a notice says what changes; so do other data and another tokenizer."""
OVERRIDE, KEEP = "override_opt_param_scheduler", "use_checkpoint_opt_param_scheduler"
WITH_OPTIM = "finetune_with_optim"
"""Starts a new training with the weights and the optimizer's state of a checkpoint."""
STRICTNESS = "dist_ckpt_strictness"
STRICT = ("assume_ok_unexpected", "raise_unexpected", "raise_all")
"""The values of this argument with which a tensor that is not in the checkpoint is an error."""
_TOWER = "vision_model_type"
CONTENT, TOKENIZER = "content", "tokenizer"
"""Names in a record besides arguments: what identifies the data and the tokenizer."""
_NEEDS = {
    "num_query_groups": "group_query_attention",
    **dict.fromkeys(
        ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim", "rope_type"),
        "multi_latent_attention",
    ),
    "rope_scaling_factor": "use_rope_scaling",
    **dict.fromkeys(ONLY_WITH_YARN, "uses yarn"),
    "moe_router_bias_update_rate": "moe_router_enable_expert_bias",
    **dict.fromkeys(
        ("mtp_use_repeated_layer", "mtp_loss_scaling_factor", "mtp_detach_heads"), "mtp_num_layers"
    ),
}
"""Arguments that have no effect without another one; those of experts are recognized by their names."""
RECORDED = tuple(
    dict.fromkeys(
        (
            *(*SHAPE, *FUNCTION, *PARTS_OF_MODEL, *FROZEN, *OPTIMIZER, *NOTICE),
            *(*LORA, *NAMES, "mock_data", "tokenizer_type", *READING),
        )
    )
)
"""The arguments (by dest) that are stored with a checkpoint."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint to resume from: how messages call it, and the recorded values of the run that saved it."""

    name: str
    values: Mapping[str, Any]
    resumes: bool = True
    """Whether the run continues; otherwise it is a new one with the weights, as with `finetune`, and with the
    optimizer's state if `finetune_with_optim` is set."""
    is_base: bool = False
    """Whether it is the base of a run that trains adapters."""


def starts_over(values: Mapping[str, Any]) -> bool:
    """Return whether a run (arguments by dest) does not continue what it finds in `load`.

    With `pretrained_checkpoint`, `finetune_with_optim` is about that one: later starts continue.
    """
    return bool(values.get(WITH_OPTIM)) and not values.get("pretrained_checkpoint")


def record(values: Mapping[str, Any], content: str = "", tokenizer: str = "") -> dict[str, Any]:
    """Return what is stored with a checkpoint of a run: plain values of `RECORDED`, data and tokenizer."""
    kept = {name: values[name] for name in RECORDED if name in values}
    return {**_plain(kept), CONTENT: content, TOKENIZER: tokenizer}


def resume_violations(saved: Saved, now: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield each argument that may not differ from the checkpoint's; `now` are the arguments by dest."""
    if now.get("moe_use_upcycling"):
        return  # the engine makes another model of the checkpoint's
    if saved.is_base:
        now = {**now, **dict.fromkeys(LORA)}
    yield from _missing_tower(saved, now)
    yield from adapter_violations(saved.name, saved.values, now, saved.resumes)
    for name in (*_changed(saved, now, _shapes(now)), *_added(saved, now)):
        same = _instead(saved, name)
        others = "start another run (experiment.exp_dir, `load`)" if saved.resumes else "load other weights"
        what = f"its weights do not fit; {same}, or {others}"
        yield name, f"{_difference(saved, now, name)}: {what}"
    if now.get("finetune") or not (saved.resumes or now.get(WITH_OPTIM)):
        return
    added = _added(saved, now)
    functions = [name for name in (*FUNCTION, *PARTS_OF_MODEL) if name not in added]
    for name in _changed(saved, now, functions) if saved.resumes else ():
        what = f"{_instead(saved, name)}, or set `finetune: true` to start a new training with its weights"
        yield name, f"{_difference(saved, now, name)}: {what}"
    if saved.resumes and not changed_data(saved.values, now):
        yield from loading_violations(saved.name, saved.values, now)
    if not _loads_optimizer(now):
        return
    thawed = [name for name in FROZEN if not now.get(name)]
    for name in _changed(saved, now, ("optimizer", DISTRIBUTED, *thawed)):
        without = "`no_load_optim: true` to continue" if saved.resumes else "`finetune: true` to start"
        what = f"{_instead(saved, name)}, or set {without} without the optimizer's state"
        yield name, f"{_difference(saved, now, name)}: {what}"
    if not saved.resumes or now.get(OVERRIDE) or now.get(KEEP):
        return
    for name, parts in _changed_schedule(saved, now).items():
        switches = f"`{OVERRIDE}: true` to use the new value, or `{KEEP}: true` to use the checkpoint's"
        yield name, f"{_difference(saved, now, name)}, which changes {parts}; set {switches}"


def resume_notices(saved: Saved, now: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield each argument whose change is allowed, but changes what the run computes from here on."""
    if now.get("finetune") or now.get("moe_use_upcycling") or not saved.resumes:
        return
    # Otherwise a changed schedule is refused.
    is_allowed = not _loads_optimizer(now) or now.get(OVERRIDE) or now.get(KEEP)
    changed = _changed_schedule(saved, now) if is_allowed else {}
    for name, parts in changed.items():
        keeps = now.get(KEEP) and _loads_optimizer(now)
        effect = f"which has no effect on {parts} (`{KEEP}`)" if keeps else f"which changes {parts}"
        yield name, f"{_difference(saved, now, name)}, {effect}"
    for name in _changed(saved, now, (*FROZEN, *NOTICE)):
        if name not in changed and name not in _shapes(now):
            yield name, _difference(saved, now, name)
    if what := changed_data(saved.values, now):
        yield what, f"{saved.name} was trained with other data: the run continues with the data given here"
    is_known = saved.values.get(TOKENIZER) and now.get(TOKENIZER)
    if is_known and saved.values[TOKENIZER] != now[TOKENIZER]:
        yield "tokenizer_model", f"{saved.name} was trained with another tokenizer"
    elif not is_known and _changed(saved, now, ("tokenizer_type",)):
        yield "tokenizer_type", _difference(saved, now, "tokenizer_type")


def _missing_tower(saved: Saved, now: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield that a training with pictures loads a model of text alone, unless it may lack weights."""
    is_known = CONTENT in saved.values and saved.values.get("num_layers")
    if not is_known or _TOWER in saved.values or _TOWER not in now or now.get(STRICTNESS) not in STRICT:
        return
    name = "load" if saved.resumes or not now.get("pretrained_checkpoint") else "pretrained_checkpoint"
    instead = "join its Hugging Face folder with one by tools/checkpoint/convert.py --tower"
    if not saved.resumes:
        instead = f"{instead}, or set `{STRICTNESS}: log_all` to draw one at random"
    yield name, f"{saved.name} is a model of text alone, without a vision tower: {instead}"


def _shapes(values: Mapping[str, Any]) -> tuple[str, ...]:
    is_learned = values.get("position_embedding_type") == "learned_absolute"
    return (*SHAPE, "max_position_embeddings") if is_learned else SHAPE


def _added(saved: Saved, now: Mapping[str, Any]) -> list[str]:
    """Return the arguments that add parts to the model which the checkpoint does not have."""
    sizes = {
        name: [_comparable(values[name]) or 0 for values in (saved.values, now)]
        for name in _changed(saved, now, PARTS_OF_MODEL)
    }
    return [name for name, (before, after) in sizes.items() if after > before]


def _loads_optimizer(now: Mapping[str, Any]) -> bool:
    return not (now.get("no_load_optim") or now.get("skip_train"))


def _changed(saved: Saved, now: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the arguments that are known on both sides and differ, as given and in effect."""
    before, after = completed(saved.values), completed(now)
    found = []
    for name in names:
        switch = _NEEDS.get(name, "num_experts" if name.startswith("moe_") else "")
        is_known = name in saved.values and name in now
        is_used = not switch or (before.get(switch) and after.get(switch))
        pairs = ((saved.values, now), (before, after))
        if is_known and is_used and all(_differ(one[name], other[name]) for one, other in pairs):
            found.append(name)
    return found


def _differ(before: Any, after: Any) -> bool:
    pair = [_comparable(value) for value in (before, after)]
    # The launcher holds some values as the text that the engine parses.
    kinds = {type(value) for value in pair if value is not None} - {int, float, bool}
    is_mixed = len(kinds) > 1 or (kinds and any(isinstance(value, int | float) for value in pair))
    return pair[0] != pair[1] and not is_mixed


def _comparable(value: Any) -> Any:
    """Return a plain value, None for each that means "off"; a list of one value is that value."""
    value = _plain(value) or None
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with the values that the engine derives for those left out (`validate_args`), and
    whether rotary positions use yarn."""
    done = {**values, "uses yarn": uses_yarn(values)}
    if done.get(MLA) and done.get("rope_type") is None:
        done["rope_type"] = "yarn"
    # A record that was edited or written by another version may hold anything.
    sizes = (done.get(name) for name in ("hidden_size", "num_attention_heads"))
    hidden, heads = (size if isinstance(size, int) else 0 for size in sizes)
    if done.get("ffn_hidden_size") is None and hidden:
        done["ffn_hidden_size"] = int((4 * hidden * 2 / 3) / 64) * 64 if done.get("swiglu") else 4 * hidden
    if done.get(MLA):
        done["kv_channels"] = None  # it has widths of its own
    elif done.get("kv_channels") is None and hidden and heads:
        done["kv_channels"] = hidden // heads
    if done.get("moe_ffn_hidden_size") is None and done.get("num_experts"):
        done["moe_ffn_hidden_size"] = done.get("ffn_hidden_size")
    return {**done, **_completed_vision(done)}


def _completed_vision(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of the tower, also those that its type has, and the grids of tiles in one form."""
    try:
        vision = vision_of(values)
    except (UserError, AttributeError, KeyError, TypeError):  # no pictures, or an edited record
        return {}
    sizes = {name: getattr(vision.tower, field) for name, field in SIZES.items()}
    return {**sizes, "image_grid_pinpoints": str(vision.tiling.grids)} if vision.tiling else sizes


def _changed_schedule(saved: Saved, now: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments to blame for what differs in the schedule, each with the parts that it changes."""
    before, after = schedule(saved.values), schedule(now)
    found: dict[str, str] = {}
    for part, names in PARTS.items():
        if None not in (before[part], after[part]) and before[part] != after[part]:
            for name in _changed(saved, now, names)[:1]:
                found[name] = f"{found[name]} and {part}" if name in found else part
    return found


def changed_data(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the argument that names other training data than before; "" if none does or it is unknown."""
    given = [name for name in TRAINING if now.get(name)]
    had_data = any(saved.get(name) for name in TRAINING)
    if bool(saved.get("mock_data")) != bool(now.get("mock_data")):
        return "mock_data" if now.get("mock_data") else next(iter(given), "")
    if not given or not had_data:
        return ""
    if saved.get(CONTENT) and now.get(CONTENT) and saved[CONTENT] != now[CONTENT]:
        return given[0]
    relevant: Callable[[Any], Any] = _weights if saved.get(CONTENT) else _plain
    return next((name for name in TRAINING if relevant(saved.get(name)) != relevant(now.get(name))), "")


def _weights(words: Any) -> Any:
    """Return the weights of a list of data; its paths may differ if the data is the same."""
    try:
        return parse(words)[1] if isinstance(words, list | tuple) else None
    except ValueError:
        return None


def _difference(saved: Saved, now: Mapping[str, Any], name: str) -> str:
    return f"`{name}` is {_shown(now[name])}, but {saved.name} was trained with {_shown(saved.values[name])}"


def _instead(saved: Saved, name: str) -> str:
    """Return what to do to keep the checkpoint's value of an argument."""
    value = saved.values[name]
    return "remove it" if value is None else f"use {_shown(value)}"


def _shown(value: Any) -> str:
    return json.dumps(_plain(value))


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it: tuples become lists, other objects their text."""
    return json.loads(json.dumps(value, default=str))
