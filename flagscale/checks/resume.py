"""What may change between the run that saved a checkpoint and the run that loads it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flagscale.checks.differences import changed, changed_data, changed_schedule, comparable
from flagscale.checks.loading import loading_violations
from flagscale.checks.lora import LORA, adapter_violations
from flagscale.checks.recorded import (
    CONTENT,
    DISTRIBUTED,
    FROZEN,
    FUNCTION,
    KEEP,
    NOTICE,
    OVERRIDE,
    PARTS_OF_MODEL,
    SHAPE,
    STRICT,
    STRICTNESS,
    TOKENIZER,
    WITH_OPTIM,
    plain,
)
from flagscale.errors import Violation

_TOWER = "vision_model_type"


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
    is_huggingface: bool = False
    """Whether it is a Hugging Face folder, with the arguments that its conversion would have."""


def starts_over(values: Mapping[str, Any]) -> bool:
    """Return whether a run (arguments by dest) does not continue what it finds in `load`.

    With `pretrained_checkpoint`, `finetune_with_optim` is about that one: later starts continue.
    """
    return bool(values.get(WITH_OPTIM)) and not values.get("pretrained_checkpoint")


def resume_violations(saved: Saved, now: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield each argument that may not differ from the checkpoint's; `now` are the arguments by dest."""
    if now.get("moe_use_upcycling"):
        return  # the engine makes another model of the checkpoint's
    if saved.is_base:
        now = {**now, **dict.fromkeys(LORA)}
    yield from _missing_tower(saved, now)
    yield from adapter_violations(saved.name, saved.values, now, saved.resumes)
    for name in (*changed(saved.values, now, _shapes(now)), *_added(saved, now)):
        same = _instead(saved, name)
        others = "start another run (experiment.exp_dir, `load`)" if saved.resumes else "load other weights"
        what = f"its weights do not fit; {same}, or {others}"
        yield name, f"{_difference(saved, now, name)}: {what}"
    yield from _other_functions(saved, now)
    if now.get("finetune") or not (saved.resumes or now.get(WITH_OPTIM)):
        return
    added = _added(saved, now)
    functions = [name for name in (*FUNCTION, *PARTS_OF_MODEL) if name not in added]
    for name in changed(saved.values, now, functions) if saved.resumes else ():
        what = f"{_instead(saved, name)}, or set `finetune: true` to start a new training with its weights"
        yield name, f"{_difference(saved, now, name)}: {what}"
    if saved.resumes and not changed_data(saved.values, now):
        yield from loading_violations(saved.name, saved.values, now)
    if not _loads_optimizer(now):
        return
    thawed = [name for name in FROZEN if not now.get(name)]
    for name in changed(saved.values, now, ("optimizer", DISTRIBUTED, *thawed)):
        without = "`no_load_optim: true` to continue" if saved.resumes else "`finetune: true` to start"
        what = f"{_instead(saved, name)}, or set {without} without the optimizer's state"
        yield name, f"{_difference(saved, now, name)}: {what}"
    if not saved.resumes or now.get(OVERRIDE) or now.get(KEEP):
        return
    for name, parts in changed_schedule(saved.values, now).items():
        switches = f"`{OVERRIDE}: true` to use the new value, or `{KEEP}: true` to use the checkpoint's"
        yield name, f"{_difference(saved, now, name)}, which changes {parts}; set {switches}"


def _other_functions(saved: Saved, now: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield each argument with which weights compute something else than before, where they may not.

    A conversion that a user has asked for may be trained otherwise, for example with other rotary positions.
    Adapters may not, because they are used with the base as it is.
    """
    if not (saved.is_base or saved.is_huggingface):
        return
    instead = "train the adapters of another base"
    if not saved.is_base:
        instead = "convert it first (tools/checkpoint/convert.py) to train it otherwise"
    for name in changed(saved.values, now, FUNCTION):
        what = f"its weights would compute something else; {_instead(saved, name)}, or {instead}"
        yield name, f"{_difference(saved, now, name)}: {what}"


def resume_notices(saved: Saved, now: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield each argument whose change is allowed, but changes what the run computes from here on."""
    if now.get("finetune") or now.get("moe_use_upcycling") or not saved.resumes:
        return
    # Otherwise a changed schedule is refused.
    is_allowed = not _loads_optimizer(now) or now.get(OVERRIDE) or now.get(KEEP)
    rescheduled = changed_schedule(saved.values, now) if is_allowed else {}
    for name, parts in rescheduled.items():
        keeps = now.get(KEEP) and _loads_optimizer(now)
        effect = f"which has no effect on {parts} (`{KEEP}`)" if keeps else f"which changes {parts}"
        yield name, f"{_difference(saved, now, name)}, {effect}"
    for name in changed(saved.values, now, (*FROZEN, *NOTICE)):
        if name not in rescheduled and name not in _shapes(now):
            yield name, _difference(saved, now, name)
    if what := changed_data(saved.values, now):
        yield what, f"{saved.name} was trained with other data: the run continues with the data given here"
    is_known = saved.values.get(TOKENIZER) and now.get(TOKENIZER)
    if is_known and saved.values[TOKENIZER] != now[TOKENIZER]:
        yield "tokenizer_model", f"{saved.name} was trained with another tokenizer"
    elif not is_known and changed(saved.values, now, ("tokenizer_type",)):
        yield "tokenizer_type", _difference(saved, now, "tokenizer_type")


def _missing_tower(saved: Saved, now: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield that a training with pictures loads a model of text alone, unless it may lack weights."""
    is_known = saved.is_huggingface or (CONTENT in saved.values and saved.values.get("num_layers"))
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
        name: [comparable(values[name]) or 0 for values in (saved.values, now)]
        for name in changed(saved.values, now, PARTS_OF_MODEL)
    }
    return [name for name, (before, after) in sizes.items() if after > before]


def _loads_optimizer(now: Mapping[str, Any]) -> bool:
    return not (now.get("no_load_optim") or now.get("skip_train"))


def _difference(saved: Saved, now: Mapping[str, Any], name: str) -> str:
    verb = "has" if saved.is_huggingface else "was trained with"
    return f"`{name}` is {_shown(now[name])}, but {saved.name} {verb} {_shown(saved.values[name])}"


def _instead(saved: Saved, name: str) -> str:
    """Return what to do to keep the checkpoint's value of an argument."""
    value = saved.values[name]
    return "remove it" if value is None else f"use {_shown(value)}"


def _shown(value: Any) -> str:
    return json.dumps(plain(value))
