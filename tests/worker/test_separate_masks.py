"""Pretraining with loss masks beside the text: in blends, in several validation sets, across documents."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.tokenizers import MegatronTokenizer

from flagscale_testing.conversations import LENGTH, drawn, write_conversations
from flagscale_testing.pairs import write_pair
from megatron.flagscale.datasets import SeparateMaskDataset

END = 20_000
"""The id that the tokenizer takes for the end of a document."""


class Corpora:
    """Pairs in a folder, each of whose tokens has an id of its own, and the mask of every id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.masks: dict[int, int] = {}
        self._ids = itertools.count(1)

    def write(self, name: str, seed: int, *, has_end: bool = False) -> str:
        """Write random conversations with masks; return the prefix of their text."""
        found = []
        for _, masks in drawn(20, seed):
            ids = [next(self._ids) for _ in masks]
            self.masks |= dict(zip(ids, masks, strict=True))
            found.append(([*ids, END], [*masks, 1]) if has_end else (ids, masks))
        return write_conversations(self.folder / name, found)

    def write_plain(self, name: str) -> str:
        """Write a text without masks, of which every token is learnt."""
        ids = [next(self._ids) for _ in range(4 * LENGTH)]
        self.masks |= dict.fromkeys(ids, 1)
        write_pair(
            self.folder / name, [*[LENGTH // 2] * 8], torch.tensor(ids, dtype=torch.uint16).numpy().tobytes()
        )
        return str(self.folder / name)


def datasets(folder: Path, train: Any, valid: Any, sizes: Any, **changes: Any) -> list[Any]:
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=LENGTH,
        blend_per_split=[train, valid, None],
        split=None,
        path_to_cache=str(folder / "cache"),
        tokenizer=MegatronTokenizer.from_pretrained(metadata_path={"library": "null-text"}, vocab_size=END),
        reset_position_ids=False,
        reset_attention_mask=False,
        create_attention_mask=False,
        **{"eod_mask_loss": False, **changes},
    )
    config.content = ""  # type: ignore[attr-defined]
    built: list[Any] = BlendedMegatronDatasetBuilder(SeparateMaskDataset, sizes, lambda: True, config).build()
    return built


def seen(samples: Any, count: int, masks: dict[int, int]) -> set[int]:
    """Check the masks of samples by the ids that they predict; return these ids."""
    labels: set[int] = set()
    for number in range(count):
        sample = samples[number]
        own = sample["labels"].tolist()
        assert sample["loss_mask"].tolist() == [masks[label] for label in own]
        labels |= {*own}
    return labels


def test_a_blend_has_the_masks_of_each_of_its_texts(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    prefixes = [corpora.write("one", 1), corpora.write("two", 2), corpora.write_plain("plain")]
    train, *_ = datasets(tmp_path, (prefixes, [1.0, 2.0, 1.0]), None, (40, 0, 0))
    found = seen(train, 40, corpora.masks)
    # More than an epoch: all but the first token of a text, which nothing predicts, and what an epoch leaves.
    assert len(found) > len(corpora.masks) - 2 * LENGTH


def test_every_validation_set_has_its_own_masks(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    train, *valid = corpora.write("train", 1), corpora.write("web", 2), corpora.write("code", 3)
    _, sets, _ = datasets(
        tmp_path,
        ([train], None),
        (valid, None),
        (4, None, 0),
        multiple_validation_sets=True,
        full_validation=True,
    )
    labels = [seen(one, len(one), corpora.masks) for one in sets]
    assert len(labels) == 2
    assert not labels[0] & labels[1]


def test_ends_of_documents_count_only_if_both_masks_say_so(tmp_path: Path) -> None:
    corpora = Corpora(tmp_path)
    prefix = corpora.write("train", 1, has_end=True)
    for is_masked in (False, True):
        train, *_ = datasets(tmp_path, ([prefix], None), None, (4, 0, 0), eod_mask_loss=is_masked)
        labels = set()
        for sample in (train[number] for number in range(4)):
            columns = (sample[name].tolist() for name in ("tokens", "labels", "loss_mask"))
            for token, label, mask in zip(*columns, strict=True):
                # The engine masks the position after an end rather than the one that predicts it.
                is_hidden = is_masked and token == END
                assert mask == (0 if is_hidden else {**corpora.masks, END: 1}[label])
                labels.add(label)
        assert END in labels
