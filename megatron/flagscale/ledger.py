"""The ledger: every patch of the engine (or of torch under it), and which of them a machine needs."""

from __future__ import annotations

from megatron.flagscale.args import PATCHES as args_patches
from megatron.flagscale.checkpoint.async_save import PATCHES as async_save_patches
from megatron.flagscale.checkpoint.optimizer_state import PATCHES as optimizer_patches
from megatron.flagscale.checkpoint.resume import PATCHES as resume_patches
from megatron.flagscale.checkpoint.save import PATCHES as saving_patches
from megatron.flagscale.chips.cpu import PATCHES as cpu_patches
from megatron.flagscale.chips.gloo import PATCHES as gloo_patches
from megatron.flagscale.hetero.patches import PATCHES as hetero_patches
from megatron.flagscale.metrics.patches import PATCHES as recording_patches
from megatron.flagscale.no_te import PATCHES as no_te_patches
from megatron.flagscale.patching import Patch

_WHEEL = (
    Patch(
        "megatron.core.datasets.utils:compile_helpers",
        lambda original: lambda: None,
        "It calls make in the package folder, but the wheel ships the compiled helper and no Makefile.",
        "wheel",
        until="the engine checks for the compiled helper first",
    ),
)


def ledger() -> tuple[Patch, ...]:
    """Return every entry, whether or not this machine needs it."""

    return (
        *cpu_patches,
        *gloo_patches,
        *no_te_patches,
        *_WHEEL,
        *args_patches,
        *recording_patches,
        *resume_patches,
        *saving_patches,
        *async_save_patches,
        *optimizer_patches,
        *hetero_patches,
    )


def needed(cuda: bool, te_or_apex: bool) -> tuple[Patch, ...]:
    """Return the entries a machine needs: `cpu` only without CUDA, `no-te` only without TE and Apex."""
    skipped = {group for group, absent in (("cpu", not cuda), ("no-te", not te_or_apex)) if not absent}
    skipped.add("hetero")
    return tuple(patch for patch in ledger() if patch.group not in skipped)
