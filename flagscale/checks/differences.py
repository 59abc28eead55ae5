"""What differs between the run that saved a checkpoint and the run that loads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flagscale.checks.blend import TRAINING, parse
from flagscale.checks.latent import MLA, ONLY_WITH_YARN, uses_yarn
from flagscale.checks.recorded import CONTENT, plain
from flagscale.checks.schedule import PARTS, schedule
from flagscale.errors import UserError
from flagscale.vision.arguments import SIZES, vision_of

_NEEDS = {
    "num_query_groups": "group_query_attention",
    **dict.fromkeys(
        ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim", "rope_type"),
        "multi_latent_attention",
    ),
    "rope_scaling_factor": "use_rope_scaling",
    **dict.fromkeys((*ONLY_WITH_YARN, "yarn_correction_range_round_to_int"), "uses yarn"),
    "moe_router_bias_update_rate": "moe_router_enable_expert_bias",
    **dict.fromkeys(
        ("mtp_use_repeated_layer", "mtp_loss_scaling_factor", "mtp_detach_heads"), "mtp_num_layers"
    ),
}
"""Arguments that have no effect without another one; those of experts are recognized by their names."""


_ON = ("yarn_correction_range_round_to_int",)
"""Arguments that are on if they are left out."""


def changed(saved: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the arguments that are known on both sides and differ, as given and in effect."""
    before, after = completed(saved), completed(now)
    found = []
    for name in names:
        switch = _NEEDS.get(name, "num_experts" if name.startswith("moe_") else "")
        is_known = name in saved and name in now
        is_used = not switch or (before.get(switch) and after.get(switch))
        pairs = ((before, after),) if name in _ON else ((saved, now), (before, after))
        if is_known and is_used and all(_differ(one[name], other[name]) for one, other in pairs):
            found.append(name)
    return found


def _differ(before: Any, after: Any) -> bool:
    pair = [comparable(value) for value in (before, after)]
    # The launcher holds some values as the text that the engine parses.
    kinds = {type(value) for value in pair if value is not None} - {int, float, bool}
    is_mixed = len(kinds) > 1 or (kinds and any(isinstance(value, int | float) for value in pair))
    return pair[0] != pair[1] and not is_mixed


def comparable(value: Any) -> Any:
    """Return a plain value, None for each that means "off"; a list of one value is that value."""
    value = plain(value) or None
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with the values that the engine derives for those left out (`validate_args`), and
    whether rotary positions use yarn."""
    done = {**values, "uses yarn": uses_yarn(values)}
    done |= {name: done[name] is not False for name in _ON if name in done}
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


def changed_schedule(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments to blame for what differs in the schedule, each with the parts that it changes."""
    before, after = schedule(saved), schedule(now)
    found: dict[str, str] = {}
    for part, names in PARTS.items():
        if None not in (before[part], after[part]) and before[part] != after[part]:
            for name in changed(saved, now, names)[:1]:
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
    relevant: Callable[[Any], Any] = _weights if saved.get(CONTENT) else plain
    return next((name for name in TRAINING if relevant(saved.get(name)) != relevant(now.get(name))), "")


def _weights(words: Any) -> Any:
    """Return the weights of a list of data; its paths may differ if the data is the same."""
    try:
        return parse(words)[1] if isinstance(words, list | tuple) else None
    except ValueError:
        return None
