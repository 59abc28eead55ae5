"""The heads of multi-token prediction, where Megatron's own do not fit our layers or a layout.

Nothing of the engine is imported before the first call, because the patches are applied before it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from megatron.flagscale.patching import Patch

if TYPE_CHECKING:
    import torch


def embedding_ranks(transformer: Any, stages: Sequence[int]) -> list[int]:
    """Return the ranks of a pipeline that hold the embeddings, or a copy: for tied outputs or for heads.

    `pretrain` takes this function for its groups. The engine's default has the first and the last stage,
    which is wrong if the heads are on a stage without the loss.
    """
    from megatron.core.parallel_state import default_embedding_ranks
    from megatron.core.transformer.multi_token_prediction import get_mtp_ranks
    from megatron.training import get_args

    of_heads = get_mtp_ranks([*stages], transformer)
    if not of_heads:
        found: list[int] = default_embedding_ranks(stages)
        return found
    is_tied = not get_args().untie_embeddings_and_output_weights
    return sorted({stages[0], *of_heads, *(stages[-1:] if is_tied else ())})


def drop_unused_outputs(chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """Remove weights that a stage has besides its tied copy of the embeddings; a pre-wrap hook.

    Megatron-core 0.19.2 allocates them beside heads on a later stage, does not use and cannot save them.
    """
    for chunk in chunks:
        is_tied = chunk.share_embeddings_and_output_weights and chunk.mtp_process
        if is_tied and chunk.post_process and not chunk.pre_process:
            chunk.output_layer.weight = None
    return chunks


def _of_our_layers(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def mtp_block_spec(config: Any, layers: Any, vp_stage: int | None = None) -> Any:
        from megatron.flagscale.layers.spec import layer_spec, prediction_heads_spec

        if config.transformer_layer_spec is layer_spec and config.transformer.mtp_num_layers:
            return prediction_heads_spec(config, vp_stage)
        return original(config, layers, vp_stage=vp_stage)

    return mtp_block_spec


def _weighted_by_tokens(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def process_mtp_loss(**named: Any) -> Any:
        if named["cp_group"].size() > 1 and named["labels"] is not None:
            weights = _context_weights(named)
            depth, loss = itertools.count(1), named["compute_language_model_loss"]
            named["compute_language_model_loss"] = lambda *given: loss(*given) * weights[next(depth)]
        return original(**named)

    return process_mtp_loss


def _context_weights(named: dict[str, Any]) -> torch.Tensor:
    """Return factors for the losses of each head, `[heads + 1]`; the first, of the model itself, is not used.

    They turn this rank's mean over its part of the samples into its share of the context parallel group's
    mean. With `calculate_per_token_loss`, the engine scales a head's loss by the tokens of the model's own.
    """
    import torch
    from megatron.core.transformer.multi_token_prediction import roll_tensor

    group, config, mask = named["cp_group"], named["config"], named["loss_mask"]
    mask = torch.ones_like(named["labels"]) if mask is None else mask
    counts = [mask.sum()]
    for _ in range(config.mtp_num_layers):
        mask, count = roll_tensor(mask, cp_group=group, packed_seq_params=named["packed_seq_params"])
        counts.append(count)
    tokens = torch.stack(counts).float()
    whole = tokens.clone()
    torch.distributed.all_reduce(whole, group=group)
    weights = tokens.clamp(min=1) * group.size() / whole.clamp(min=1)
    return weights / weights[0] if config.calculate_per_token_loss else weights


PATCHES = (
    Patch(
        "megatron.training.models.gpt:mtp_block_spec",
        _of_our_layers,
        "It builds the heads of multi-token prediction from Megatron's own layers, whatever those of the "
        "model are. Without TransformerEngine, those have neither sequence nor context parallelism.",
        "worker",
        until="it takes the heads' layers from the model's specification",
    ),
    Patch(
        "megatron.core.models.gpt.gpt_model:process_mtp_loss",
        _weighted_by_tokens,
        "With context parallelism, it averages the means of the ranks. But one rank has the ends of all "
        "samples, where a head has no label: its tokens would weigh more than those of the others.",
        "worker",
        until="it divides by the number of tokens in the whole context parallel group",
    ),
)
