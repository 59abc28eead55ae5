"""Rules for saving checkpoints: how often, in which format, and which of them are kept."""

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


def retention_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the arguments (by dest) about old checkpoints that are wrong or would have no effect."""
    last, every, interval = (values.get(name) for name in ("keep_last", "keep_every", "save_interval"))
    for name, number in (("keep_last", last), ("keep_every", every)):
        if number is not None and number < 1:
            yield name, f"`{name}` must be at least 1, not {number}; remove the key to keep all checkpoints"
    if every is not None and last is None:
        yield "keep_every", "`keep_every` needs `keep_last`: the number of newest checkpoints to keep"
    if every and interval and every > 0 and every % interval:
        yield "keep_every", f"keep_every {every} must be a multiple of save_interval {interval}"
    if last is None:
        return
    if not values.get("save"):
        yield "keep_last", "`keep_last` has no effect without `save`; remove one"
    elif values["save"] == values.get("pretrained_checkpoint"):
        what = "`save` and `pretrained_checkpoint` are the same folder, from which `keep_last` would remove"
        yield "keep_last", f"{what} the weights that the training starts from: save to another folder"
    if values.get("save_retain_interval"):
        yield "save_retain_interval", "give `keep_last` and `keep_every`, or `save_retain_interval`, not both"
    if (kind := values.get("ckpt_format")) not in ("torch_dist", "torch"):
        what = "it does not show which checkpoints are complete; use torch_dist, or remove `keep_last`"
        yield "ckpt_format", f"`keep_last` cannot be combined with `ckpt_format: {kind}`: {what}"
