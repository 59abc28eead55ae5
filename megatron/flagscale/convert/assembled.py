"""Put a model with pictures together from the separate folders of a language model and of a vision tower.

The projector between them and the newline are drawn at random: training them is the first stage of LLaVA.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

import torch

from flagscale.errors import Problem, UserError
from megatron.flagscale.convert.families.towers import PREFIX
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.tensors import Entry, Source, entries
from megatron.flagscale.convert.tower_folder import TowerFolder

_STD = 0.02


class Assembled:
    """A source that provides a language model and a tower as one model with pictures and `vocab` tokens.

    Rows that the language model lacks, those of placeholders, are the mean of its others.

    Raises:
        UserError: the tower does not match its configuration, or the language model already has one.
    """

    def __init__(self, language: Source, tower: TowerFolder, vocab: int) -> None:
        if language.model.vision:
            what = "has no effect: the model already has a tower"
            raise UserError([Problem(what, "--tower", "leave it out")])
        rows = max(vocab, language.model.vocab)
        self.model: Model = replace(language.model, vision=tower.vision, vocab=rows)
        self._language, self._tower = language, tower
        self._entries = {(entry.megatron, entry.expert): entry for entry in entries(language.model)}
        tower.check([entry for entry in entries(self.model) if entry.megatron.startswith(PREFIX)])

    def dtype(self, entry: Entry) -> torch.dtype:
        """Return the precision of a tensor as stored; that of the embedding if it is drawn."""
        if entry.megatron.startswith(PREFIX):
            return self._tower.dtype(entry)
        return self._language.dtype(self._origin(entry) or next(iter(self._entries.values())))

    def read(self, entry: Entry) -> torch.Tensor:
        """Return the tensor of an entry of `entries(self.model)`."""
        if entry.megatron.startswith(PREFIX):
            return entry.join.join(self._tower.parts(entry), self.model)
        origin = self._origin(entry)
        if origin is None:
            return _drawn(entry).to(self.dtype(entry))
        tensor = self._language.read(origin)
        more = entry.shape[0] - len(tensor)
        return (
            torch.cat([tensor, tensor.float().mean(0).to(tensor.dtype).expand(more, -1)]) if more else tensor
        )

    def _origin(self, entry: Entry) -> Entry | None:
        return self._entries.get((entry.megatron, entry.expert))


def _drawn(entry: Entry) -> torch.Tensor:
    """Return a random tensor that depends on its name; zeros for a bias."""
    if entry.megatron.endswith(".bias"):
        return torch.zeros(entry.shape)
    generator = torch.Generator().manual_seed(zlib.crc32(entry.megatron.encode()))
    return torch.empty(entry.shape).normal_(0.0, _STD, generator=generator)
