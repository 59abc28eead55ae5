"""A rank's own arguments: the values that `--hetero-layout` gives its mesh override those for all ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flagscale.checks.hetero.layout import HeteroLayout
from flagscale.checks.hetero.rules import mesh_violations
from flagscale.errors import UserError
from flagscale.formats import option_of
from megatron.flagscale.checks import worker_problems

if TYPE_CHECKING:
    from megatron.flagscale.args import AddArguments

# Another layout could not read a rank's random state. Ranks of unequal meshes would also decide by their own
# degrees whether to read it, so some would wait forever for the others.
_WITHOUT_RANDOM_STATE = ("--no-save-rng", "--no-load-rng")


@dataclass(frozen=True)
class OwnPart:
    """A rank's part in a heterogeneous layout."""

    layout: HeteroLayout
    rank: int
    argv: tuple[str, ...]
    """The engine's arguments for this rank."""
    sequence_parallel: bool
    """Whether meshes use it unless they say otherwise."""
    etp: int | None
    """The expert tensor parallel size of all meshes; None: each mesh's tp."""

    @property
    def mesh(self) -> int:
        return self.layout.position(self.rank).mesh

    @contextmanager
    def engine_world(self) -> Iterator[None]:
        """Set the world size to what it would be if all stages were like those of this rank's mesh."""
        before = os.environ["WORLD_SIZE"]
        os.environ["WORLD_SIZE"] = str(self.layout.engine_world_size(self.mesh))
        try:
            yield
        finally:
            os.environ["WORLD_SIZE"] = before


def own_part(argv: Sequence[str], add_arguments: AddArguments | None = None) -> OwnPart | None:
    """Return this rank's part in the layout of a command line, or None if the command line has no layout.

    `add_arguments` adds a training program's arguments. Rank and world size are read from the environment.
    Raises `UserError` if the layout breaks a rule.
    """
    if not any(word.partition("=")[0] == "--hetero-layout" for word in argv):
        return None
    from megatron.flagscale.args import engine_parser

    values = vars(engine_parser(add_arguments).parse_args(list(argv)))
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        layout = HeteroLayout.from_json(values["hetero_layout"])
    except ValueError as error:
        raise UserError(f"--hetero-layout: {error}") from None
    if found := list(mesh_violations(layout, values, ranks)):
        raise UserError(worker_problems(found))
    place = layout.position(rank)
    argv = _own_words(argv, layout.arguments(values, place.mesh))
    etp = values["expert_tensor_parallel_size"]
    return OwnPart(layout, rank, tuple(argv), bool(values["sequence_parallel"]), etp)


def _own_words(argv: Sequence[str], own: dict[str, Any]) -> list[str]:
    """Append a rank's own values, so that they override those for all; a flag is removed if it is not set."""
    words = [word for word in argv if word != "--sequence-parallel"]
    for name, value in own.items():
        flag = option_of(name)
        if name != "sequence_parallel":
            words += [flag, str(value)]
        elif value:
            words.append(flag)
    return [*words, *_WITHOUT_RANDOM_STATE]
