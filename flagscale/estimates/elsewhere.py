"""Data and tokenizers that this machine does not have: an estimate needs only the size of a vocabulary."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from flagscale.checks.lora import RANK
from flagscale.checks.mask_files import NO_PACKING
from flagscale.checks.sft import PROGRAM
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem, UserError
from flagscale.estimates.training import OF_ADAPTERS

_DATA = ("data_path", "train_data_path", "valid_data_path", "test_data_path")
_TOKENIZER = ("tokenizer_model", "vocab_file", "merge_file")
_OTHERS = ("load", "pretrained_checkpoint")
_SIZES = ("padded_vocab_size", "vocab_size")
_ENTRYPOINT = "experiment.task.entrypoint"


def without_files(
    config: DictConfig, group: str, error: UserError, source_map: SourceMap
) -> tuple[DictConfig, str] | None:
    """Return a configuration that names no files, and a notice, if only missing files are wrong with it.

    Args:
        config: the composed configuration.
        group: its task group.
        error: what is wrong with it.
        source_map: where its keys are written.

    Raises:
        UserError: the tokenizer is not here, and nothing else gives the size of the vocabulary; or the job is
            a training of adapters, whose base does not have to be here to learn that it is not estimated.
    """
    wrong = {problem.where.rpartition(": ")[2] for problem in error.problems}
    if not all(_leaf(path) in (*_DATA, *_TOKENIZER, *_OTHERS) for path in wrong):
        return None
    config = copy.deepcopy(config)
    leaves = {
        _leaf(path): path for path in _paths(OmegaConf.to_container(config[group], resolve=False), group)
    }
    if (rank := leaves.get(RANK)) and OmegaConf.select(config, rank) is not None:
        what, hint = OF_ADAPTERS
        raise UserError([Problem(what, source_map.where(rank), hint)])
    for path in (path for path in leaves.values() if path in wrong or _leaf(path) in _DATA):
        OmegaConf.update(config, path, None)

    def give(name: str, value: object) -> None:
        OmegaConf.update(config, leaves.get(name, f"{group}.{name}"), value, force_add=True)

    give("mock_data", True)
    if OmegaConf.select(config, _ENTRYPOINT) == PROGRAM:  # it has no random data; its samples cost the same
        OmegaConf.update(config, _ENTRYPOINT, "megatron.flagscale.train_gpt")
        if packing := leaves.get(NO_PACKING):
            with open_dict(config):
                del OmegaConf.select(config, packing.rpartition(".")[0])[NO_PACKING]
    if any(_leaf(path) in _TOKENIZER for path in wrong):
        sizes = (OmegaConf.select(config, leaves[name]) for name in _SIZES if name in leaves)
        size = next((size for size in sizes if isinstance(size, int)), None)
        if size is None:
            what = "the tokenizer is not on this machine, so the number of tokens is not known"
            hint = f"for an estimate, add {group}.padded_vocab_size=N"
            raise UserError([Problem(what, source_map.where(min(wrong)), hint)])
        for name in (*_TOKENIZER, "tokenizer_special_tokens"):
            if name in leaves:
                give(name, None)
        give("tokenizer_type", "NullTokenizer")
        give("vocab_size", size)
    names = ", ".join(sorted(_leaf(path) for path in wrong))
    return config, f"not on this machine, and not needed for an estimate: the files of {names}"


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _paths(tree: Any, path: str) -> Iterator[str]:
    """Yield the key paths of all values."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _paths(value, f"{path}.{key}")
    else:
        yield path
