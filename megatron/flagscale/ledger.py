"""The ledger: every patch of the engine (or of torch under it), and which of them a machine needs."""

from __future__ import annotations

from megatron.flagscale.args import PATCHES as args_patches
from megatron.flagscale.build_tokenizer import PATCHES as tokenizer_patches
from megatron.flagscale.checkpoint.load import PATCHES as load_patches
from megatron.flagscale.checkpoint.not_saved import PATCHES as not_saved_patches
from megatron.flagscale.checkpoint.optimizer_state import PATCHES as optimizer_patches
from megatron.flagscale.checkpoint.parameter_groups import PATCHES as group_patches
from megatron.flagscale.checkpoint.retention import PATCHES as retention_patches
from megatron.flagscale.checkpoint.save import PATCHES as saving_patches
from megatron.flagscale.chips import Chip, chip
from megatron.flagscale.chips.cpu import CPU
from megatron.flagscale.group_routing import PATCHES as routing_patches
from megatron.flagscale.hetero.patches import PATCHES as hetero_patches
from megatron.flagscale.layers.expert_bias import PATCHES as expert_bias_patches
from megatron.flagscale.layers.padding import PATCHES as padding_patches
from megatron.flagscale.layers.prediction_heads import PATCHES as prediction_patches
from megatron.flagscale.layers.rotary import PATCHES as rotary_patches
from megatron.flagscale.metrics.patches import PATCHES as recording_patches
from megatron.flagscale.no_te import PATCHES as no_te_patches
from megatron.flagscale.patching import Patch
from megatron.flagscale.schedule import PATCHES as schedule_patches
from megatron.flagscale.startup import PATCHES as startup_patches
from megatron.flagscale.steering.passes import PATCHES as pass_patches
from megatron.flagscale.supervision import PATCHES as supervision_patches
from megatron.flagscale.train_step import PATCHES as step_patches
from megatron.flagscale.validation import PATCHES as validation_patches

_ALWAYS = (
    Patch(
        "megatron.core.datasets.utils:compile_helpers",
        lambda original: lambda: None,
        "It calls make in the package folder, but the wheel ships the compiled helper and no Makefile.",
        "wheel",
        until="the engine checks for the compiled helper first",
    ),
    Patch(
        "megatron.training.dist_signal_handler:get_device",
        lambda original: lambda local_rank=None: chip().device(),
        "It derives the device from the backend and knows only nccl and gloo.",
        "worker",
        until="the engine asks the process group for its device",
    ),
    *args_patches,
    *routing_patches,
    *recording_patches,
    *validation_patches,
    *tokenizer_patches,
    *expert_bias_patches,
    *padding_patches,
    *prediction_patches,
    *schedule_patches,
    *step_patches,
    *pass_patches,
    *load_patches,
    *saving_patches,
    *retention_patches,
    *supervision_patches,
    *optimizer_patches,
    *group_patches,
    *not_saved_patches,
    *startup_patches,
    *rotary_patches,
)


def ledger() -> tuple[Patch, ...]:
    """Return all of FlagScale's own entries, whether or not this machine needs them."""
    return (*CPU.patches, *no_te_patches, *_ALWAYS, *hetero_patches)


def needed(used: Chip, te_or_apex: bool) -> tuple[Patch, ...]:
    """Return the entries a machine needs: its chip's, `no-te` only without TE and Apex, and the common ones.

    The group `hetero` is not among them: it is applied when a pipeline over unequal meshes is built.
    """
    return (*used.patches, *(() if te_or_apex else no_te_patches), *_ALWAYS)
