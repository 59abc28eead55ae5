"""The contract of a family: which tensors it has, and how each format writes its configuration.

A family is a table that serves both directions: tensors by `Row`, sizes by key of `config.json`, and
Megatron's arguments where they differ from the engine's defaults. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron.flagscale.convert.families.joins import COPY, Join, Shape
from megatron.flagscale.convert.model import Model

EXTENTS: Mapping[str, Callable[[Model], int]] = {
    "hidden": lambda model: model.hidden,
    "ffn": lambda model: model.ffn,
    "gate+up": lambda model: 2 * model.ffn,
    "head": lambda model: model.head_dim,
    "query": lambda model: model.heads * model.head_dim,
    "key": lambda model: model.groups * model.head_dim,
    "qkv": lambda model: (model.heads + 2 * model.groups) * model.head_dim,
    "vocab": lambda model: model.vocab,
    "positions": lambda model: model.positions,
    "experts": lambda model: model.experts,
}
"""The extents that shapes can name in every family."""


@dataclass(frozen=True)
class Row:
    """One tensor of Megatron and those of Hugging Face; `{layer}` and `{expert}` stand for numbers.

    `shape` is Megatron's, of one expert if there are several. `also` is a second name of the same tensor in
    Megatron: layers of TransformerEngine use another one.
    """

    megatron: str
    huggingface: tuple[str, ...]
    shape: Shape
    join: Join = COPY
    also: str = ""


@dataclass(frozen=True)
class Setting:
    """A choice that varies within a family: a key of `config.json` that is an argument of Megatron.

    `values` gives Megatron's value for each value of the key; if empty, both formats write the same value.
    `default` is the value that a missing key stands for.
    """

    key: str
    argument: str
    default: Any
    values: Mapping[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Family:
    """An architecture of Hugging Face that Megatron's GPT model can compute."""

    name: str
    architecture: str
    """The class in transformers, as `architectures` of `config.json` names it."""
    model_type: str
    rows: tuple[Row, ...]
    """In the order of the stream: before, in and after the layers. An output that a model may tie to its
    embedding has its row as well."""
    keys: Mapping[str, str]
    """Field of `Model` -> key of `config.json`. Without `head_dim` it is `hidden / heads`, without `groups`
    there are as many as heads. A family with experts has `experts` and `topk`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Megatron's arguments that make the architecture, named as the engine keeps them. All others that
    change what a model computes (`megatron_args.ARCHITECTURE`) have the engine's defaults."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Values of `config.json` that are always so; another value is refused, a missing key means this one."""
    written: Mapping[str, Any] = field(default_factory=dict)
    """Further values that are written to `config.json` and not checked when it is read."""
    defaults: Mapping[str, Callable[[Mapping[str, Any]], Any]] = field(default_factory=dict)
    """Field of `Model` -> its value if its key is missing or null, computed from the fields known so far."""
    tied: bool = False
    """Whether a model is tied if its `config.json` does not say."""
    settings: tuple[Setting, ...] = ()
    extents: Mapping[str, Callable[[Model], int]] = field(default_factory=dict)
    """Extents of its own, in addition to `EXTENTS`."""
    buffers: tuple[str, ...] = ()
    """Endings of stored tensors that are computed from the configuration, and ignored."""
    refuse: Callable[[Mapping[str, Any], Model], Iterator[str]] = lambda config, model: iter(())
    """Yields whatever else of a `config.json` cannot be converted."""
    mixture: str = ""
    """The family that a dense model becomes when its MLP is copied into experts."""

    @property
    def has_experts(self) -> bool:
        return "experts" in self.keys

    @property
    def is_rotary(self) -> bool:
        return self.arguments.get("position_embedding_type") == "rope"

    def sizes(self, model: Model) -> dict[str, int]:
        """Return the extents of a model by the names that shapes use."""
        return {name: extent(model) for name, extent in {**EXTENTS, **self.extents}.items()}
