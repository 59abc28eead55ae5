"""What may change between the run that saved a checkpoint and the run that resumes from it: a table of keys.

Keys that are not in the table are free: parallel degrees, logging, saving, speed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flagscale.checks.blend import NAMES, parse
from flagscale.errors import Violation

SHAPE = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels"),
    *("group_query_attention", "num_query_groups", "multi_latent_attention", "q_lora_rank", "kv_lora_rank"),
    *("qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim", "qk_layernorm", "normalization", "swiglu"),
    *("add_bias_linear", "add_qkv_bias", "position_embedding_type", "untie_embeddings_and_output_weights"),
    *("num_experts", "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size", "moe_layer_freq"),
)
"""Another value gives weights of another shape or name: refused, whatever else is set."""
FUNCTION = (
    *(
        "squared_relu",
        "quick_geglu",
        "rotary_base",
        "rotary_percent",
        "rotary_interleaved",
        "use_rope_scaling",
    ),
    *("rope_scaling_factor", "rotary_seq_len_interpolation_factor", "layernorm_epsilon"),
    "layernorm_zero_centered_gamma",
    *("moe_router_topk", "moe_router_score_function", "moe_router_pre_softmax", "window_size", "optimizer"),
)
"""Another value makes the same weights, or the state of the optimizer, mean something else: refused, unless
`finetune` starts a new training from these weights."""
SCHEDULE = {
    "the learning rate": ("lr",),
    "the minimum learning rate": ("min_lr",),
    "the warm-up": ("lr_warmup_iters", "lr_warmup_samples", "lr_warmup_fraction", "lr_decay_iters",
                "lr_decay_samples", "train_iters", "train_samples", "global_batch_size"),
    "the length of the schedule": ("lr_decay_iters", "lr_decay_samples", "train_iters", "train_samples",
                               "global_batch_size"),
    "the decay style": ("lr_decay_style",),
    "the initial weight decay": ("start_weight_decay", "weight_decay", "weight_decay_incr_style"),
    "the final weight decay": ("end_weight_decay", "weight_decay", "weight_decay_incr_style"),
    "the length of the weight decay's increase": ("train_iters", "train_samples", "global_batch_size"),
    "the increase of the weight decay": ("weight_decay_incr_style",),
}  # fmt: skip
"""What the engine asserts to be equal, with the keys that it follows from: refused, unless a switch says
which of the two schedules counts."""
NOTICE = (
    *("seed", "global_batch_size", "seq_length", "split", "step_batch_size_schedule", "attention_dropout"),
    *("hidden_dropout", "clip_grad", "adam_beta1", "adam_beta2", "adam_eps", "bf16", "fp16", "eod_mask_loss"),
    *("reset_attention_mask", "reset_position_ids", "moe_aux_loss_coeff", "moe_router_load_balancing_type"),
    *("lr_wsd_decay_iters", "lr_wsd_decay_samples", "lr_wsd_decay_style", "max_position_embeddings"),
)
"""The run continues and a notice says what changes; so do other data and another tokenizer."""
OVERRIDE, KEEP = "override_opt_param_scheduler", "use_checkpoint_opt_param_scheduler"
CONTENT, TOKENIZER = "content", "tokenizer"
"""Names in a record besides arguments: what identifies the data and the tokenizer."""
_NEEDS = {
    "num_query_groups": "group_query_attention",
    **dict.fromkeys(
        ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim"),
        "multi_latent_attention",
    ),
    "rope_scaling_factor": "use_rope_scaling",
}
"""Arguments that have no effect without another one; those of experts are recognized by their names."""
_OF_SCHEDULE = tuple(dict.fromkeys(name for names in SCHEDULE.values() for name in names))
RECORDED = tuple(dict.fromkeys((*SHAPE, *FUNCTION, *_OF_SCHEDULE, *NOTICE, *NAMES, "tokenizer_type")))
"""The arguments (by dest) that are stored with a checkpoint."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint to resume from: how messages call it, and the recorded values of the run that saved it."""

    name: str
    values: Mapping[str, Any]


def record(values: Mapping[str, Any], content: str = "", tokenizer: str = "") -> dict[str, Any]:
    """Return what is stored with a checkpoint of a run: plain values of `RECORDED`, data and tokenizer."""
    kept = {name: values[name] for name in RECORDED if name in values}
    return {**_plain(kept), CONTENT: content, TOKENIZER: tokenizer}


def _shapes(values: Mapping[str, Any]) -> tuple[str, ...]:
    is_learned = values.get("position_embedding_type") == "learned_absolute"
    return (*SHAPE, "max_position_embeddings") if is_learned else SHAPE


def resume_violations(saved: Saved, now: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield each argument that may not differ from the checkpoint's; `now` are the arguments by dest."""
    for name in _changed(saved, now, _shapes(now)):
        what = f"its weights do not fit; use {_shown(saved.values[name])}, or another experiment.exp_dir"
        yield name, f"{_difference(saved, now, name)}: {what}"
    if now.get("finetune"):
        return
    for name in _changed(saved, now, FUNCTION):
        what = (
            f"use {_shown(saved.values[name])}, or `finetune: true` to start a new training with its weights"
        )
        yield name, f"{_difference(saved, now, name)}: {what}"
    if now.get(OVERRIDE) or now.get(KEEP):
        return
    for name, parts in _changed_schedule(saved, now).items():
        switches = (
            f"`{OVERRIDE}: true` to continue with the new value, or `{KEEP}: true` with the checkpoint's"
        )
        yield name, f"{_difference(saved, now, name)}, which changes {parts}; set {switches}"


def resume_notices(saved: Saved, now: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield each argument whose change is allowed, but changes what the run computes from here on."""
    if now.get("finetune"):
        return
    changed = _changed_schedule(saved, now) if now.get(OVERRIDE) or now.get(KEEP) else {}
    for name, parts in changed.items():
        effect = (
            f"which changes {parts}" if now.get(OVERRIDE) else f"which has no effect on {parts} (`{KEEP}`)"
        )
        yield name, f"{_difference(saved, now, name)}, {effect}"
    for name in _changed(saved, now, NOTICE):
        if name not in changed and name not in _shapes(now):
            yield name, _difference(saved, now, name)
    if what := _changed_data(saved.values, now):
        yield what, f"{saved.name} was trained with other data: the run continues with the data given here"
    is_known = saved.values.get(TOKENIZER) and now.get(TOKENIZER)
    if is_known and saved.values[TOKENIZER] != now[TOKENIZER]:
        yield "tokenizer_model", f"{saved.name} was trained with another tokenizer"
    elif not is_known and _changed(saved, now, ("tokenizer_type",)):
        yield "tokenizer_type", _difference(saved, now, "tokenizer_type")


def schedule(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the engine compares, by the names in `SCHEDULE`; lengths in samples, None if unknown.

    The formulas are those of `get_optimizer_param_scheduler` in megatron/training/training.py (0.19.2).
    """
    batch = values.get("global_batch_size")
    if values.get("train_iters"):
        unit, scale = "iters", None if values.get("step_batch_size_schedule") else batch
    else:
        unit, scale = "samples", 1
    whole = values.get(f"train_{unit}")
    decay = values.get(f"lr_decay_{unit}") or whole
    fraction = values.get("lr_warmup_fraction")
    warmup = (values.get(f"lr_warmup_{unit}") or 0) if fraction is None else fraction * (decay or 0)
    is_constant = values.get("weight_decay_incr_style") == "constant"
    ends = [values.get("weight_decay" if is_constant else f"{end}_weight_decay") for end in ("start", "end")]
    found = (
        *(
            values.get("lr"),
            values.get("min_lr") or 0.0,
            scale and warmup * scale,
            scale and decay and decay * scale,
        ),
        *(values.get("lr_decay_style"), *ends, scale and whole and whole * scale),
        values.get("weight_decay_incr_style"),
    )
    return dict(zip(SCHEDULE, found, strict=True))


def _changed(saved: Saved, now: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    """Return the arguments that are known on both sides and differ."""
    found = []
    for name in names:
        switch = _NEEDS.get(name, "num_experts" if name.startswith("moe_") else "")
        is_known = name in saved.values and name in now
        if not is_known or (switch and not (saved.values.get(switch) and now.get(switch))):
            continue
        before, after = saved.values[name] or None, _plain(now[name]) or None
        # The launcher holds some values as the text that the engine parses.
        is_text = {isinstance(value, str) for value in (before, after) if value is not None}
        if before != after and len(is_text) < 2:
            found.append(name)
    return found


def _changed_schedule(saved: Saved, now: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments to blame for what differs in the schedule, each with the parts that it changes."""
    before, after = schedule(saved.values), schedule(now)
    found: dict[str, str] = {}
    for part, names in SCHEDULE.items():
        if None not in (before[part], after[part]) and before[part] != after[part]:
            for name in _changed(saved, now, names)[:1]:
                found[name] = f"{found[name]} and {part}" if name in found else part
    return found


def _changed_data(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the argument that names other data than before; "" if there is none, or nothing is known."""
    given = [name for name in NAMES if now.get(name)]
    if not given or not any(saved.get(name) for name in NAMES):
        return ""
    if saved.get(CONTENT) and now.get(CONTENT):
        if saved[CONTENT] != now[CONTENT]:
            return given[0]
        before, after = ([_weights(values.get(name)) for name in NAMES] for values in (saved, now))
    else:
        before, after = ([_plain(values.get(name)) for name in NAMES] for values in (saved, now))
    return next((name for name, *pair in zip(NAMES, before, after, strict=True) if pair[0] != pair[1]), "")


def _weights(words: Any) -> Any:
    """Return the weights of a list of data; its paths may differ if the data is the same."""
    try:
        return parse(words)[1] if isinstance(words, list | tuple) else None
    except ValueError:
        return None


def _difference(saved: Saved, now: Mapping[str, Any], name: str) -> str:
    return f"`{name}` is {_shown(now[name])}, but {saved.name} was trained with {_shown(saved.values[name])}"


def _shown(value: Any) -> str:
    return json.dumps(_plain(value))


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it: tuples become lists, other objects their text."""
    return json.loads(json.dumps(value, default=str))
