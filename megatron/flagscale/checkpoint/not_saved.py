"""Resume with all state of a checkpoint in a run that leaves some out of its own (`no_save_optim`)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

from megatron.flagscale.patching import Patch


def _loading_what_is_not_saved(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def generate_state_dict(args: Any, *positional: Any, **named: Any) -> Any:
        if (named.get("optim_sd_kwargs") or {}).get("is_loading"):
            args = copy.copy(args)
            args.no_save_optim = args.no_save_rng = False
        return original(args, *positional, **named)

    return generate_state_dict


PATCHES = (
    Patch(
        "megatron.training.checkpointing:generate_state_dict",
        _loading_what_is_not_saved,
        "With `no_save_optim` it does not load the optimizer's tensors either: the run continues with "
        "uninitialized memory as its state, and the weights become NaN. `no_save_rng`: it cannot resume.",
        "worker",
        until="what is loaded does not depend on what is saved",
    ),
)
