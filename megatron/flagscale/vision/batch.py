"""One micro-batch of text with pictures: this rank's part of what the first tensor parallel rank has read.

The loader yields dicts of `tokens`, `labels` and `position_ids` (int64), `loss_mask` (float32), all `[b, s]`,
`starts` (int64 `[b, s]`, the start of each token's own sample, only if samples are packed), `media` (`Media`,
only with pictures), `lengths` (the number of tokens of each sample, without padding), and `keys`, the names
of the samples. Each placeholder is already repeated to its number of tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import mpu
from megatron.core.utils import get_batch_on_this_cp_rank

from megatron.flagscale.chips import chip
from megatron.flagscale.vision.media import IMAGE, VIDEO, Item, Media
from megatron.flagscale.vision.reading import is_first, is_last, stage_reads
from megatron.flagscale.vision.work import count

_WHOLE = ("tokens", "labels", "position_ids", "starts")
_KINDS = (IMAGE, VIDEO)


def get_batch(
    data_iterator: Iterator[Mapping[str, Any]] | None, args: argparse.Namespace, vp_stage: int | None
) -> dict[str, Any]:
    """Return this rank's part of the next micro-batch: all values are None that its stage does not need.

    `tokens` and `position_ids` are those of whole sequences, with `media` beside them, because the pictures
    are placed before a sequence is split; `labels` and `loss_mask` are this context parallel rank's part.
    `attention_mask` holds the starts of packed samples, as `layers.documents` expects them.
    """
    reads = stage_reads(args, vp_stage)
    found = next(data_iterator) if reads and data_iterator is not None else None
    if found and is_first(vp_stage):
        count(found["lengths"], len(found["media"].tiles))
    else:
        count()
    if not reads:
        return dict.fromkeys(("tokens", "position_ids", "attention_mask", "labels", "loss_mask", "media"))
    batch = shared(found, mpu.get_tensor_model_parallel_group())
    starts = batch.pop("starts", None)
    ends: dict[str, Any] = dict.fromkeys(("labels", "loss_mask"))
    if is_last(vp_stage):
        ends = get_batch_on_this_cp_rank(
            {name: batch[name] for name in ends},
            is_hybrid_cp=False,
            cp_group=mpu.get_context_parallel_group(),
        )
    return {
        "tokens": batch["tokens"],
        "position_ids": batch["position_ids"],
        # On the host: they decide which kernels are called.
        "attention_mask": None if starts is None else starts.cpu(),
        "media": batch["media"] if is_first(vp_stage) else None,
        **ends,
    }


def shared(found: Mapping[str, Any] | None, group: dist.ProcessGroup) -> dict[str, Any]:
    """Return a micro-batch on the device of each rank of a group; its first rank has `found` it."""
    device = chip().device()
    if group.size() == 1:
        assert found is not None
        return _moved(found, device)
    source = dist.get_global_rank(group, 0)

    def from_first(tensor: torch.Tensor | None, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
        sent = torch.empty(shape, dtype=dtype, device=device) if tensor is None else tensor.to(device)
        dist.broadcast(sent, source, group)
        return sent

    sizes = from_first(None if found is None else _sizes(found), [5], torch.int64).tolist()
    samples, length, whole, items, side = sizes
    names = _WHOLE[:whole]
    numbers = None if found is None else torch.stack([found[name] for name in names])
    batch: dict[str, Any] = dict(
        zip(names, from_first(numbers, [whole, samples, length], torch.int64), strict=True)
    )
    mask = None if found is None else found["loss_mask"]
    batch["loss_mask"] = from_first(mask, [samples, length], torch.float32)
    batch["media"] = None
    if side:
        media = None if found is None else found["media"]
        rows = from_first(None if media is None else _rows(media), [items, 4], torch.int64).tolist()
        tiles = from_first(
            None if media is None else media.tiles, [sum(row[3] for row in rows), 3, side, side], torch.uint8
        )
        batch["media"] = Media(tiles, tuple(Item(_KINDS[kind], *others) for kind, *others in rows))
    return batch


def _moved(found: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a micro-batch on the device, without waiting for it."""
    names = [name for name in (*_WHOLE, "loss_mask") if name in found]
    batch: dict[str, Any] = {name: found[name].to(device, non_blocking=True) for name in names}
    media = found.get("media")
    tiles = None if media is None else media.tiles.to(device, non_blocking=True)
    return {**batch, "media": None if media is None else Media(tiles, media.items)}


def _sizes(found: Mapping[str, Any]) -> torch.Tensor:
    """Return samples, length, number of tensors in `_WHOLE`, number of items, and side of the tiles."""
    media = found.get("media")
    whole = len(_WHOLE) - ("starts" not in found)
    pictures = (0, 0) if media is None else (len(media.items), media.tiles.size(-1))
    return torch.tensor([*found["tokens"].shape, whole, *pictures])


def _rows(media: Media) -> torch.Tensor:
    rows = [(_KINDS.index(item.kind), item.height, item.width, item.tiles) for item in media.items]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)
