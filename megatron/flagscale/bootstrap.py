"""Adapt the worker to the machine: default arguments, patches, and settings that have no argument."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flagscale.checks.lora import trains_adapters
from flagscale.checks.norms import NORMS
from flagscale.checks.schedule import DEFAULT_EVAL_INTERVAL
from flagscale.checks.steering import ON_BAD_LOSS, STOP
from flagscale.checks.worker import Capabilities
from flagscale.errors import UserError

if TYPE_CHECKING:
    from megatron.flagscale.args import AddArguments

_DEFAULTS = (
    "--dist-ckpt-optim-fully-reshardable",  # every layout can read every checkpoint
    f"--eval-interval={DEFAULT_EVAL_INTERVAL}",
    "--logging-level=30",  # warnings only; otherwise hundreds of lines of information
    "--no-one-logger",  # NVIDIA's internal metrics service
)


def prepare_engine(
    argv: Sequence[str], add_arguments: AddArguments | None = None, own_parts: Collection[str] = ()
) -> list[str]:
    """Prepare the engine for this machine: apply the patches it needs and return the whole argument list.

    Must be called before the engine is imported. `add_arguments` adds a program's arguments; `own_parts`
    names the other parts that it has itself (`flagscale.checks.worker.PARTS`). Raises `UserError` if the
    arguments break a rule of `flagscale.checks.worker` on this machine.
    """
    from megatron.flagscale import no_te
    from megatron.flagscale.args import engine_parser
    from megatron.flagscale.checkpoint import async_save
    from megatron.flagscale.checkpoint.arguments import remember
    from megatron.flagscale.checkpoint.huggingface import checkpoints_of
    from megatron.flagscale.checks import argument_problems
    from megatron.flagscale.chips import chip
    from megatron.flagscale.patching import has_te_or_apex

    here, fused = chip(), has_te_or_apex()
    has_chip = not here.is_host_processor
    patch_engine()
    if not any("fsdp" in argument for argument in argv):
        for name, value in here.env.items():
            os.environ.setdefault(name, value)
    whole = [
        *_DEFAULTS,
        *async_save.arguments(),
        *(() if fused else no_te.DEFAULTS),
        f"--distributed-backend={here.backend}",
        *here.defaults,
        *argv,
    ]
    args = engine_parser(add_arguments).parse_args(whole)
    remember(vars(args))
    problems = argument_problems(args, Capabilities(has_chip, has_chip and fused, here.backend), own_parts)
    if problems:
        raise UserError(problems)
    if base := checkpoints_of(args):
        whole.append(f"--pretrained-checkpoint={base}")
    return [*_implied(args), *whole]


def _implied(args: Any) -> Iterator[str]:
    """Yield the arguments of the engine that parsed ones imply."""
    if args.transformer_impl == "torch":
        # The layers mask later tokens and other documents themselves; a mask matrix costs memory and time.
        yield "--no-create-attention-mask-in-dataloader"
        if args.multi_latent_attention:
            # They turn queries and keys themselves, and the engine rejects `--rope-type rope` with fusion.
            yield "--no-rope-fusion"
    if getattr(args, ON_BAD_LOSS) != STOP:
        # They would end the training before the loss is judged.
        yield "--no-check-for-nan-in-loss-and-grad"


@functools.cache
def patch_engine() -> None:
    """Apply the patches this machine needs, once per process and before the engine is imported."""
    from megatron.flagscale import log_filters as noise
    from megatron.flagscale.chips import chip
    from megatron.flagscale.ledger import needed
    from megatron.flagscale.patching import apply, has_te_or_apex

    noise.quiet()
    patches = needed(chip(), has_te_or_apex())
    apply(patch for patch in patches if patch.target.startswith("torch:"))
    apply(patch for patch in patches if not patch.target.startswith("torch:"))


def adapt(model_config: Any, args: Any) -> None:
    """Set what has no argument: layers, loss, initial weights, one checkpoint key per layer."""
    from megatron.flagscale.chips import chip

    transformer = model_config.transformer
    if transformer.mtp_num_layers:
        from megatron.flagscale.layers.prediction_heads import drop_unused_outputs

        model_config.pre_wrap_hooks.append(drop_unused_outputs)
    if args.transformer_impl != "transformer_engine" and not args.init_by_rank:
        from megatron.flagscale.initialization import draw_by_name

        draw_by_name(model_config, args.seed)
    if args.transformer_impl == "torch" and args.spec is None:
        from megatron.flagscale.layers.gemma_arguments import set_gemma_layers
        from megatron.flagscale.layers.spec import layer_spec

        model_config.transformer_layer_spec = layer_spec
        for name in NORMS:
            setattr(transformer, name, getattr(args, name))
        set_gemma_layers(model_config, args)
        if chip().compiles and not (args.cross_entropy_loss_fusion or args.disable_jit_fuser):
            # Without compilation it is slower than Megatron's plain loss.
            from megatron.flagscale.layers.loss import use_our_loss

            model_config.pre_wrap_hooks.append(use_our_loss)
        transformer.transformer_impl = "local"  # the engine then uses its own linear layers
    if trains_adapters(vars(args)):
        from megatron.flagscale.lora.attach import attach

        model_config.pre_wrap_hooks.append(functools.partial(attach, args))
    transformer.hetereogenous_dist_checkpoint = True
    model_config.rope_scaling_factor = args.rope_scaling_factor  # the engine only parses it
    if args.multi_latent_attention:
        # The engine reads these only without MLA, which has no arguments for them.
        for name in ("original_max_position_embeddings", "beta_fast", "beta_slow"):
            given = getattr(args, f"yarn_{name}")
            setattr(transformer, name, getattr(transformer, name) if given is None else given)
