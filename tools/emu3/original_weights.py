"""The weights of BAAI's Emu3 under the names and in the shapes of transformers, copied byte by byte.

Names are those of `modeling_emu3.py` and `modeling_emu3visionvq.py` in BAAI's repository, and those that
`Emu3ForConditionalGeneration.save_pretrained` of transformers 5.19 writes. No value changes: attention of the
vision tokenizer has convolutions of one pixel, which are stored as matrices.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flagscale.checks.stored_tensors import Stored
from flagscale.checks.weight_files import weights_of
from flagscale.errors import Problem, UserError
from megatron.flagscale.convert.weight_writer import Planned, WeightWriter

if TYPE_CHECKING:
    from transformers import Emu3Config

_TOWER = "vqmodel."
_TOWER_RENAMES = (
    (r"\.mid\.attn_1\.norm\.", r".mid.attn_norm."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"\.(attn_1|attn\.\d+)\.([qkv])\.", r".\1.\2_proj."),
    (r"\.(attn_1|attn\.\d+)\.proj_out\.", r".\1.out_proj."),
    (r"^(encoder|decoder)\.mid\.", r"\1.middle_block."),
    (r"^(encoder|decoder)\.(down|up)\.", r"\1.\2_block.\2."),
)
_PIECE = 16 << 20
"""Bytes that are in memory at a time."""
_SHOWN = 3


class Advances(Protocol):
    """Counts bytes, as `tools.progress` does."""

    def advance(self, size: int, **counts: float) -> None:
        """Add bytes, and what else was done with them."""


def tower_name(name: str) -> str:
    """Return transformers' name of a tensor of the vision tokenizer."""
    for old, new in _TOWER_RENAMES:
        name = re.sub(old, new, name)
    return _TOWER + name


def text_name(name: str) -> str:
    """Return transformers' name of a tensor of the language model."""
    return f"text_model.{name}"


def read_weights(folder: Path, tower: Path, config: Emu3Config) -> dict[str, Stored]:
    """Return where the tensors of transformers' model are stored, by the names that it saves, in its shapes.

    Raises:
        UserError: a file is missing or damaged, or the tensors are not exactly those of the model that
            `config` describes; lists everything.
    """
    found: dict[str, Stored] = {}
    problems: list[Problem] = []
    expected = _expected(config)
    for path, renamed in ((folder, text_name), (tower, tower_name)):
        is_tower = renamed is tower_name
        wanted = {name: shape for name, shape in expected.items() if name.startswith(_TOWER) == is_tower}
        stored, wrong = _renamed(path, renamed)
        if not wrong:
            wrong = list(_differences(stored, wanted))
        problems += [Problem(what, str(path)) for what in wrong]
        found |= stored
    if problems:
        raise UserError(problems)
    return {name: one._replace(shape=expected[name]) for name, one in found.items()}


def copy_weights(stored: Mapping[str, Stored], folder: Path, shard_bytes: int, progress: Advances) -> None:
    """Write the tensors into shards in `folder`, with a piece of one in memory at a time."""
    # In a file, each tensor begins at a multiple of its item's size, as torch needs to read it in place.
    names = sorted(stored, key=lambda name: (-_item(stored[name]), not name.startswith(_TOWER)))
    planned = [Planned(name, one.dtype, one.shape, one.size) for name in names for one in [stored[name]]]
    writer = WeightWriter(folder, planned, shard_bytes)
    try:
        for name in names:
            writer.append(name, _pieces(stored[name], progress))
        writer.finish()
    finally:
        writer.close()


def _pieces(one: Stored, progress: Advances) -> Iterator[bytes]:
    with one.file.open("rb") as file:
        file.seek(one.start)
        left = one.size
        while left:
            piece = file.read(min(left, _PIECE))
            assert piece, f"{one.file} became shorter"
            left -= len(piece)
            yield piece
            progress.advance(len(piece), MB=len(piece) / 1e6)


def _item(one: Stored) -> int:
    """Return the bytes of one number of a tensor."""
    count = 1
    for extent in one.shape:
        count *= extent
    return one.size // max(count, 1)


def _renamed(folder: Path, renamed: Callable[[str], str]) -> tuple[dict[str, Stored], list[str]]:
    stored, problems = weights_of(folder, {})
    if not stored and not problems:
        again = "load it with BAAI's code and save it with `save_pretrained`"
        return {}, [f"its weights are not in safetensors; {again}"]
    return {renamed(name): one for name, one in stored.items()}, problems


def _expected(config: Emu3Config) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors that transformers' model saves, by name."""
    import torch
    from transformers import Emu3ForConditionalGeneration

    with torch.device("meta"):
        model = Emu3ForConditionalGeneration(config)
    prefixes = {
        "model.text_model.": "text_model.model.",
        "model.vqmodel.": _TOWER,
        "lm_head.": "text_model.lm_head.",
    }
    shapes = {}
    for name, tensor in model.state_dict().items():
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
        shapes[prefixes[prefix] + name.removeprefix(prefix)] = tuple(tensor.shape)
    return shapes


def _differences(stored: Mapping[str, Stored], expected: Mapping[str, Sequence[int]]) -> Iterator[str]:
    if missing := [name for name in expected if name not in stored]:
        yield f"{len(missing)} of {len(expected)} tensors are missing: {_some(missing)}"
    if extra := [name for name in stored if name not in expected]:
        yield f"{len(extra)} tensors do not belong to Emu3: {_some(extra)}"
    wrong = [
        name for name, one in stored.items() if name in expected and not _fits(one.shape, expected[name])
    ]
    shown = wrong[:_SHOWN]
    for name in shown:
        given = f"but config.json gives {list(expected[name])}"
        yield f"{name} has shape {list(stored[name].shape)}, {given}"
    if len(wrong) > len(shown):
        yield f"{len(wrong) - len(shown)} more tensors have shapes that differ from config.json"


def _fits(shape: Sequence[int], expected: Sequence[int]) -> bool:
    return tuple(shape) == tuple(expected) or (len(expected) == 2 and tuple(shape) == (*expected, 1, 1))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
