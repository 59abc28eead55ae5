"""A pipeline over unequal meshes in Megatron's own trainer: process groups, messages between stages, sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron.flagscale.args import AddArguments
    from megatron.flagscale.hetero.arguments import OwnPart


def parse_own(part: OwnPart, add_arguments: AddArguments | None = None) -> Any:
    """Return this rank's arguments, checked as if all stages were like those of its own mesh."""
    from megatron.flagscale.args import parse
    from megatron.flagscale.hetero import patches
    from megatron.flagscale.patching import apply

    apply(patches.PATCHES)
    with part.engine_world():
        return parse(add_arguments)


def join(part: OwnPart, args: Any, model_config: Any) -> dict[str, Any]:
    """Join the ranks of all meshes; return groups and communicator as keyword arguments of `pretrain`.

    Call it on the arguments that `parse_own` returns. Changes `args` and `model_config`.
    """
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron.flagscale.hetero import groups
    from megatron.flagscale.hetero.finalize import use_finalizer
    from megatron.flagscale.hetero.p2p import Communicator

    args.world_size = part.layout.world_size
    groups.start(part.layout, args, part.etp)
    use_finalizer(model_config, part.layout, groups.timeout_of(args))
    communicator = Communicator(part, model_config.transformer, args)
    groups.list_for_engine()
    return {
        "pg_collection": ProcessGroupCollection.use_mpu_process_groups(),
        "p2p_communicator": communicator,
    }
