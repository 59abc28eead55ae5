"""Rules for saving checkpoints: how often, and in a format from which the run can resume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.errors import Violation

_OF_FSDP = {"torch_dcp": "use_torch_fsdp2", "fsdp_dtensor": "use_megatron_fsdp"}
"""Values of `ckpt_format` that belong to one kind of sharded data parallel."""


def saving_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield every rule of the engine for saving that the arguments (by dest) break."""
    interval, keep = values.get("save_interval"), values.get("save_retain_interval")
    if values.get("save") and interval is None:
        yield "save_interval", "`save_interval` is required: iterations between checkpoints (or `save: null`)"
    if keep and interval and keep % interval:
        yield (
            "save_retain_interval",
            f"save_retain_interval {keep} must be a multiple of save_interval {interval}",
        )
    kind = str(values.get("ckpt_format"))
    if kind in _OF_FSDP and not values.get(_OF_FSDP[kind]):
        yield "ckpt_format", f"`ckpt_format: {kind}` needs `{_OF_FSDP[kind]}: true`; otherwise use torch_dist"


def resuming_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the arguments (by dest) with which the engine starts, but fails to save or to resume later, or
    loads something else than asked for."""
    for name in ("finetune", "no_load_optim", "skip_train", "moe_use_upcycling"):
        if values.get("finetune_with_optim") and values.get(name):
            what = f"give `finetune_with_optim` or `{name}`, which does not load the optimizer's state"
            yield "finetune_with_optim", what
    if values.get("ckpt_format") != "torch":
        return
    needs = "needs `ckpt_format: torch_dist`"
    is_fp32 = not (values.get("fp16") or values.get("bf16"))
    if is_fp32 and values.get("use_distributed_optimizer") and not values.get("no_save_optim"):
        what = "`use_distributed_optimizer` with an fp32 model cannot resume from `ckpt_format: torch`"
        yield "ckpt_format", f"{what}; use torch_dist"
    if values.get("async_save"):
        yield "async_save", f"`async_save` {needs}"
    if values.get("non_persistent_ckpt_type") == "global":
        yield "non_persistent_ckpt_type", f"`non_persistent_ckpt_type: global` {needs}"
