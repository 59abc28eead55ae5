"""The contract of a family: its tensors, and how each format writes its configuration.

A family is a table that serves both directions: a `Row` per tensor, a key of `config.json` per size, and the
arguments of Megatron that differ from the engine's defaults. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron.flagscale.convert.families.joins import COPY, Join, Shape
from megatron.flagscale.convert.hf_defaults import class_defaults
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

DERIVED: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "groups": lambda known: known["heads"],
    "head_dim": lambda known: max(known["hidden"] // known["heads"], 1),
    "window": lambda known: 0,
    "attention_dropout": lambda known: 0.0,
    "hidden_dropout": lambda known: 0.0,
}
"""Field of `Model` -> its value if its key is null or there is none, from the fields known so far."""


@dataclass(frozen=True)
class Row:
    """One tensor of Megatron and those of Hugging Face; `{layer}` and `{expert}` stand for numbers.

    `shape` is the shape in Megatron, for one expert if there are several. `also` is a second name of the same
    tensor in Megatron: TransformerEngine layers use a different one.
    """

    megatron: str
    huggingface: tuple[str, ...]
    shape: Shape
    join: Join = COPY
    also: str = ""


@dataclass(frozen=True)
class Setting:
    """A choice that varies within a family: a key of `config.json` and the matching argument of Megatron.

    `values` maps each value of the key to Megatron's; if empty, both formats write the same value.
    """

    key: str
    argument: str
    values: Mapping[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Family:
    """An architecture of Hugging Face that Megatron's GPT model can compute."""

    name: str
    architecture: str
    """The class in transformers, as named in `architectures` of `config.json`."""
    model_type: str
    """The name of its configuration in `config.json`."""
    rows: tuple[Row, ...]
    """In the order of the stream: before, in and after the layers. The output has a row even if a model may
    tie it to its embedding."""
    keys: Mapping[str, str]
    """Field of `Model` -> key of `config.json`. Fields of `DERIVED` need none. A family with experts has
    `experts` and `topk`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Megatron's arguments that define the architecture, by their names in the engine's `args`. All other
    arguments that change the computation (`megatron_args.ARCHITECTURE`) have the engine's defaults."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fixed values of `config.json`: written, and the only ones that can be read."""
    written: Mapping[str, Any] = field(default_factory=dict)
    """Further values that are written to `config.json`, or functions that return them for a model."""
    checks: Mapping[str, Callable[[Any, Model], str]] = field(default_factory=dict)
    """Key of `config.json` -> returns what is wrong with its value for a model; "" if nothing is."""
    harmless: tuple[str, ...] = ()
    """Further keys of `config.json` that change nothing in any model that can be read. Every other key must
    have the default of the configuration class (see `hf_keys`)."""
    derived: Mapping[str, Callable[[Mapping[str, Any]], Any]] = field(default_factory=dict)
    """Field of `Model` -> its value if its key is null, in addition to `DERIVED`."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Key of `config.json` -> its value if missing. Only for a family whose configuration class is not part
    of transformers: all others have the defaults of their class."""
    settings: tuple[Setting, ...] = ()
    extents: Mapping[str, Callable[[Model], int]] = field(default_factory=dict)
    """Extents of this family, in addition to `EXTENTS`."""
    buffers: tuple[str, ...] = ()
    """Endings of the names of stored tensors to ignore, because they are computed from the configuration."""
    other_forms: Mapping[str, str] = field(default_factory=dict)
    """Further architectures whose folders can be read as this family, with their `model_type`. A folder that
    another family calls its own is read as this one only on request."""
    notice: str = ""
    """Printed when a folder of this family was written: what else is needed to open it."""
    mixture: str = ""
    """The family of the model that results from copying the MLP of a dense one into experts."""

    @property
    def has_experts(self) -> bool:
        return "experts" in self.keys

    @property
    def is_rotary(self) -> bool:
        return self.arguments.get("position_embedding_type") == "rope"

    @property
    def forms(self) -> dict[str, str]:
        """The architectures that can be read as this family, with their `model_type`."""
        return {self.architecture: self.model_type, **self.other_forms}

    @property
    def class_name(self) -> str:
        """The first of its forms that is a class of transformers; an auto class if there is none."""
        known = (name for name, model_type in self.forms.items() if class_defaults(model_type))
        return next(known, "AutoModelForCausalLM")

    @property
    def class_defaults(self) -> Mapping[str, Any]:
        """The value of each key that `config.json` lacks."""
        return {**class_defaults(self.model_type), **self.defaults}

    def sizes(self, model: Model) -> dict[str, int]:
        """Return the extents of a model, by the names that shapes use."""
        return {name: extent(model) for name, extent in {**EXTENTS, **self.extents}.items()}
