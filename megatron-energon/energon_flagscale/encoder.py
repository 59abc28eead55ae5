"""From conversations to micro-batches: tokens with their placeholders repeated, a loss on answers, and tiles.

A sample is encoded in two steps, so that packing holds compressed pictures: first its text and the sizes of
its pictures, which give its length; then the pixels, once its sequence is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from megatron.energon import Cooker, Sample, SkipSample, TaskEncoder, edataclass, stateless

from energon_flagscale.cookers import ConversationSample, cook
from energon_flagscale.packing import packs_of
from energon_flagscale.pictures import (
    Picture,
    check_picture,
    decoded,
    evenly_spaced,
    open_picture,
    picture_tiles,
    video_tiles,
)
from energon_flagscale.unusable import UnusableSample
from flagscale.checks.messages import ConversationError
from flagscale.errors import UserError
from flagscale.vision.tiling import Vision, image_tokens, tiles_of, video_tokens
from megatron.flagscale.chat.conversation import ChatTemplate
from megatron.flagscale.chat.templates import template_of
from megatron.flagscale.chat.tokens import answer_tokens
from megatron.flagscale.vision.media import IMAGE, VIDEO, Item, Media


@dataclass(frozen=True)
class Sequences:
    """The lengths of sequences in tokens."""

    most: int
    """A longer sample is unusable (`seq_length`)."""
    multiple: int = 1
    """Each length is a multiple of it; `most` must be one."""
    is_fixed: bool = False
    """Whether all sequences have `most` tokens; else as many as the longest sample of the micro-batch."""


@edataclass
class Encoded(Sample):
    """A sample, or several in one sequence: tokens, and pictures before and after they are decoded."""

    keys: tuple[str, ...]
    ids: np.ndarray
    """int64 `[length]`, with placeholders repeated."""
    is_answer: np.ndarray
    """bool `[length]`: the tokens that a model learns to write."""
    lengths: tuple[int, ...]
    """Of each sample that is packed here."""
    items: tuple[Item, ...]
    media: tuple[list[Picture], ...]
    """For each item, its picture, or the frames of its video."""
    tiles: list[np.ndarray] | None = None


class Encoder(TaskEncoder[ConversationSample, Encoded, dict[str, Any], dict[str, Any]]):
    """Energon's task encoder; its batches are the micro-batches of `megatron.flagscale.train_llava`.

    A dict of `tokens`, `labels`, `position_ids`, `starts` (with packing) int64 and `loss_mask` float32, each
    `[b, s]`; `media`; `lengths` and `keys` of the samples. Those that cannot be used raise `UnusableSample`.
    """

    decoder = None
    cookers = (Cooker(cook),)

    def __init__(
        self,
        tokenizer: Any,
        vision: Vision,
        sequences: Sequences,
        chat_template: str | None = None,
        *,
        makes_tiles: bool = True,
        packs: bool = False,
    ) -> None:
        """`tokenizer`: transformers'; `chat_template`: the value of that argument.

        Without `makes_tiles`, the same samples are skipped as with it, and `media` is empty.

        Raises:
            UserError: the tokenizer lacks the placeholders' tokens or a template.
        """
        super().__init__()
        if not tokenizer.is_fast:
            raise UserError(f"{tokenizer.name_or_path}: {type(tokenizer).__name__} is not a fast tokenizer")
        self.vision, self.sequences = vision, sequences
        self.makes_tiles, self.packs = makes_tiles, packs
        known = {IMAGE: vision.image_token, **({VIDEO: vision.video_token} if vision.tiling else {})}
        self._kinds = {_token_id(tokenizer, token): kind for kind, token in known.items()}
        text = template_of(tokenizer, chat_template, vision.image_token, vision.video_token)
        self.template = ChatTemplate(text, tokenizer)
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        pad = tokenizer.pad_token_id
        self._pad = pad if pad is not None else tokenizer.eos_token_id or 0

    @stateless
    def preencode_sample(self, sample: ConversationSample) -> Encoded:
        """Return the sample's tokens; of its pictures, only the headers are read."""
        try:
            text = self.template.conversation(sample.messages)
        except ConversationError as error:
            raise UnusableSample(str(error)) from error
        encoding = self._tokenizer.encode(text.text, add_special_tokens=False)
        ids = np.asarray(encoding.ids, np.int64)
        is_answer = answer_tokens(encoding.offsets, text.answers)
        is_placeholder = np.logical_or.reduce([ids == placeholder for placeholder in self._kinds])
        is_answer[is_placeholder] = False
        kinds = [self._kinds[one] for one in ids[is_placeholder].tolist()]
        items, media, tokens = self._items(kinds, sample)
        repeats = np.ones(len(ids), np.int64)
        repeats[is_placeholder] = tokens
        ids, is_answer = ids.repeat(repeats), is_answer.repeat(repeats)
        if len(ids) > self.sequences.most:
            what = f"it has {len(ids)} tokens, {sum(tokens)} of them for {len(items)} pictures and videos"
            raise UnusableSample(f"{what}: more than `seq_length: {self.sequences.most}`")
        if not is_answer.any():
            raise UnusableSample("it has no answer to learn")
        encoded: Encoded = Encoded.derive_from(
            sample,
            keys=(sample.__key__,),
            ids=ids,
            is_answer=is_answer,
            lengths=(len(ids),),
            items=items,
            media=media,
        )
        return encoded

    @stateless
    def postencode_sample(self, sample: Encoded) -> Encoded:
        """Return the sample with its pictures decoded and cut into tiles."""
        if self.makes_tiles:
            pictures = sum(item.kind == IMAGE for item in sample.items)
            pairs = zip(sample.items, sample.media, strict=True)
            tiles = [
                picture_tiles(decoded(frames[0]), self.vision, pictures)
                if item.kind == IMAGE
                else video_tiles([decoded(frame) for frame in frames], self.vision)
                for item, frames in pairs
            ]
            return replace(sample, media=(), tiles=tiles)
        for picture in (picture for frames in sample.media for picture in frames):
            check_picture(picture)
        return replace(sample, media=(), items=(), tiles=[])

    def select_samples_to_pack(self, samples: list[Encoded]) -> list[list[Encoded]]:
        """Return groups of samples that fit into a sequence each."""
        packs = packs_of([len(sample.ids) for sample in samples], self.sequences.most)
        return [[samples[place] for place in pack] for pack in packs]

    @stateless
    def pack_selected_samples(self, samples: list[Encoded]) -> Encoded:
        """Return one sample of several, each of which is a document of its own."""
        if not samples:  # none of them could be decoded
            raise SkipSample
        return replace(
            samples[0],
            __key__=",".join(sample.__key__ for sample in samples),
            keys=tuple(key for sample in samples for key in sample.keys),
            __sources__=tuple(source for sample in samples for source in sample.__sources__ or ()),
            ids=np.concatenate([sample.ids for sample in samples]),
            is_answer=np.concatenate([sample.is_answer for sample in samples]),
            lengths=tuple(length for sample in samples for length in sample.lengths),
            items=tuple(item for sample in samples for item in sample.items),
            tiles=[tiles for sample in samples for tiles in sample.tiles or ()],
        )

    @stateless
    def batch(self, samples: list[Encoded]) -> dict[str, Any]:
        """Return the micro-batch of these samples."""
        shape = len(samples), self._length(samples)
        tokens = np.full(shape, self._pad, np.int64)
        labels = np.full(shape, self._pad, np.int64)
        loss_mask = np.zeros(shape, np.float32)
        starts = np.zeros(shape, np.int64)
        for row, sample in enumerate(samples):
            length = len(sample.ids)
            tokens[row, :length] = sample.ids
            labels[row, : length - 1] = sample.ids[1:]
            loss_mask[row, : length - 1] = sample.is_answer[1:]
            if self.packs:
                lengths = (*sample.lengths, shape[1] - length)
                starts[row] = np.repeat(np.cumsum((0, *lengths[:-1])), lengths)
        batch = {
            "tokens": tokens,
            "labels": labels,
            "loss_mask": loss_mask,
            "position_ids": np.arange(shape[1]) - starts,
        }
        if self.packs:
            batch["starts"] = starts
        return {
            **{name: torch.from_numpy(array) for name, array in batch.items()},
            "media": self._media(samples),
            "lengths": [length for sample in samples for length in sample.lengths],
            "keys": [key for sample in samples for key in sample.keys],
        }

    def _items(
        self, kinds: Sequence[str], sample: ConversationSample
    ) -> tuple[tuple[Item, ...], tuple[list[Picture], ...], list[int]]:
        """Return the items of a sample's placeholders in order, their pictures, and their tokens."""
        if sample.videos and VIDEO not in self._kinds.values():
            raise UnusableSample("it has a video, and a model without tiles knows only pictures")
        for kind, files in ((IMAGE, sample.pictures), (VIDEO, sample.videos)):
            if kinds.count(kind) != len(files):
                what = f"its text has {kinds.count(kind)} placeholders of {kind} type for {len(files)} files"
                raise UnusableSample(f"{what}: a message contains a placeholder as text")
        pictures = iter([[open_picture(data, name)] for name, data in sample.pictures])
        videos = iter(
            [open_picture(data, name) for name, data in evenly_spaced(frames, self.vision.video_frames)]
            for frames in sample.videos
        )
        items, media, tokens = [], [], []
        for kind in kinds:
            frames = next(pictures if kind == IMAGE else videos)
            size = frames[0].size
            if kind == IMAGE:
                tiles = tiles_of(size, self.vision, len(sample.pictures))
                tokens.append(image_tokens(size, self.vision, len(sample.pictures)))
            else:
                tiles = len(frames)
                tokens.append(video_tokens(tiles, self.vision))
            items.append(Item(kind, *size, tiles))
            media.append(frames)
        return tuple(items), tuple(media), tokens

    def _length(self, samples: Sequence[Encoded]) -> int:
        if self.sequences.is_fixed or self.packs:
            return self.sequences.most
        longest = max(len(sample.ids) for sample in samples)
        return -(-longest // self.sequences.multiple) * self.sequences.multiple

    def _media(self, samples: Sequence[Encoded]) -> Media:
        tiles = [part for sample in samples for part in sample.tiles or ()]
        side = self.vision.tower.side
        together = (
            tiles[0] if len(tiles) == 1 else np.concatenate([np.empty((0, 3, side, side), np.uint8), *tiles])
        )
        return Media(torch.from_numpy(together), tuple(item for sample in samples for item in sample.items))


def _token_id(tokenizer: Any, token: str) -> int:
    """Return the id of a placeholder's token."""
    number = tokenizer.get_vocab().get(token)
    if number is None or tokenizer(token, add_special_tokens=False).input_ids != [number]:
        what = f"{tokenizer.name_or_path}: the tokenizer has no special token {token!r}"
        raise UserError(f"{what}, which stands for a picture or video")
    return int(number)
