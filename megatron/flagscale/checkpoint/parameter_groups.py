"""Load the state of an optimizer into a run with other learning rates.

The engine finds the parameter groups of a checkpoint by their settings, the learning rates among them. With
`override_opt_param_scheduler` or `use_checkpoint_opt_param_scheduler`, those of the checkpoint may differ
from this run's; the scheduler then takes the rates that the groups hold.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flagscale.checks.recorded import KEEP
from megatron.flagscale.patching import Patch

_RATES = ("max_lr", "min_lr", "start_wd", "end_wd")


def with_equal_rates(
    saved: Sequence[dict[str, Any]], current: Sequence[dict[str, Any]], names: Sequence[str], keeps: bool
) -> list[dict[str, Any]]:
    """Return the groups of a checkpoint with the rates of the `current` groups that correspond to them.

    `names` are the settings that identify a group. With `keeps`, the current groups get the checkpoint's
    rates instead. Groups that differ in their rates only do not correspond to one other group: they stay.
    """
    others = [name for name in names if name not in _RATES]

    def by_identity(groups: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
        keys = [tuple(group.get(name, group.get(f"pre_{name}")) for name in others) for group in groups]
        return {key: group for key, group in zip(keys, groups, strict=True) if keys.count(key) == 1}

    def rates(group: Mapping[str, Any]) -> dict[str, Any]:
        return {name: group[name] for name in _RATES if name in group}

    before, now = by_identity(saved), by_identity(current)
    own = {id(before[key]): now[key] for key in before if key in now}
    if keeps:
        for group in saved:
            own.get(id(group), {}).update(rates(group))
    return [{**group, **rates(own.get(id(group), {}))} for group in saved]


def _equal_rates(saved: Sequence[dict[str, Any]], current: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    from megatron.core.optimizer.optimizer import param_group_identifier_keys
    from megatron.training import get_args

    return with_equal_rates(saved, current, param_group_identifier_keys, bool(getattr(get_args(), KEEP)))


def _of_distributed(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
        inner = state_dict.get("optimizer")
        if inner and "param_groups" in inner:
            groups = _equal_rates(inner["param_groups"], self.optimizer.param_groups)
            state_dict = {**state_dict, "optimizer": {**inner, "param_groups": groups}}
        original(self, state_dict)
        for state in self.optimizer.state.values():
            if "step" in state:
                state["step"] = state["step"].detach().clone()

    return load_state_dict


def _of_plain(original: staticmethod[..., Any]) -> staticmethod[..., Any]:
    @functools.wraps(original.__func__)
    def filter_and_reorder(current_groups: list[Any], state_dict_groups: list[Any]) -> Any:
        return original.__func__(current_groups, _equal_rates(state_dict_groups, current_groups))

    return staticmethod(filter_and_reorder)


_WHY = "A resume with another learning rate ends with a KeyError, although a switch says which rate counts."
PATCHES = (
    Patch(
        "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.load_state_dict",
        _of_distributed,
        f"{_WHY} It also stores the same step tensor in every parameter's state; torch's AdamW then "
        "increments it once per parameter, and the resumed run silently continues with a wrong step count.",
        "worker",
        until="groups are found by settings that a resume may not change",
    ),
    Patch(
        "megatron.core.optimizer.optimizer:MegatronOptimizer._filter_and_reorder_param_groups",
        _of_plain,
        _WHY,
        "worker",
        until="groups are found by settings that a resume may not change",
    ),
)
