"""The contract of a family: its tensors, and how each format writes its configuration.

A family is a table that serves both directions: a `Row` per tensor, a key of `config.json` per size, and the
arguments of Megatron that differ from the engine's defaults. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from megatron.flagscale.convert.families.joins import COPY, Join, Shape
from megatron.flagscale.convert.hf_defaults import class_defaults
from megatron.flagscale.convert.json_values import is_positive, is_size, same
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
    "shared_ffn": lambda model: model.shared * model.ffn,
    "shared_gate+up": lambda model: 2 * model.shared * model.ffn,
    "dense_ffn": lambda model: model.dense_ffn,
    "dense_gate+up": lambda model: 2 * model.dense_ffn,
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


def as_given(config: Mapping[str, Any], report: Callable[[str], None]) -> Mapping[str, Any]:
    """Return the keys of a `config.json` unchanged."""
    return config


def always(model: Model, layer: int) -> bool:
    """Return True: every layer of every model has the tensor."""
    return True


@dataclass(frozen=True)
class Row:
    """One tensor of Megatron and those of Hugging Face; `{layer}` and `{expert}` stand for numbers.

    A row with `{depth}` belongs to the layers for multi-token prediction (`Model.mtp`). `{depth}` counts
    them, and `{layer}` continues the numbers of the other layers, as in Hugging Face's format.

    `shape` is the shape in Megatron, for one expert if there are several. `also` is a second name of the same
    tensor in Megatron: TransformerEngine layers use a different one. `when` returns whether a layer has it.
    `copies` are the names under which each layer with a `{depth}` stores the same tensor in Hugging Face's
    format. The precision of an `exact` tensor never changes.
    """

    megatron: str
    huggingface: tuple[str, ...]
    shape: Shape
    join: Join = COPY
    also: str = ""
    when: Callable[[Model, int], bool] = always
    copies: tuple[str, ...] = ()
    exact: bool = False
    stacked: bool = False
    """Whether one tensor of Hugging Face holds those of all experts, along an axis before the others."""


class Kind(NamedTuple):
    """A kind of value: its description, and whether a value of JSON is one."""

    text: str
    fits: Callable[[Any], bool]


NUMBER = Kind("a number of at least 0", lambda value: same(value, 0) or is_positive(value))
POSITIVE = Kind("a positive number", is_positive)
SIZE = Kind("a positive whole number", is_size)
SIZE_OR_NULL = Kind("null or a positive whole number", lambda value: value is None or is_size(value))


@dataclass(frozen=True)
class Setting:
    """A choice that varies within a family: a key of `config.json` and the matching argument of Megatron.

    `values` maps each value of the key to Megatron's; if empty, both formats write the same value, which is
    of a `kind`. Null, in either format, stands for `unset`.
    """

    key: str
    argument: str
    values: Mapping[Any, Any] = field(default_factory=dict)
    kind: Kind = NUMBER
    unset: Any = None


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
    `experts` and `topk`, and `shared`, `dense` and `dense_ffn`, or `mtp`, if its models have these."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Megatron's arguments that define the architecture, by their names in the engine's `args`. All other
    arguments that change the computation (`megatron_args.ARCHITECTURE`) have the engine's defaults."""
    computed: Mapping[str, Callable[[Model], tuple[Any, ...]]] = field(default_factory=dict)
    """Megatron's arguments that follow from other values of a model: the one to write, then equal ones."""
    task: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of a training that starts from a model; a checkpoint may have others."""
    ignored: tuple[str, ...] = ()
    """Those of `megatron_args.ARCHITECTURE` that change nothing in this family."""
    scalings: tuple[str, ...] = ("linear", "llama3", "yarn", "dynamic")
    """The kinds of rotary scaling that Megatron computes in this family: `Rope.scaling`, and "dynamic", which
    changes nothing in sequences of up to `max_position_embeddings` tokens."""
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
    """Key of `config.json` -> its value if missing, for keys that the configuration class of transformers
    lacks, or computes, or if there is no such class. All others have the defaults of the class."""
    settings: tuple[Setting, ...] = ()
    extents: Mapping[str, Callable[[Model], int]] = field(default_factory=dict)
    """Extents of this family, in addition to `EXTENTS`."""
    buffers: tuple[str, ...] = ()
    """Endings of the names of stored tensors to ignore, because they are computed from the configuration."""
    other_keys: Mapping[str, str] = field(default_factory=dict)
    """Further names that keys of `config.json` have in some versions of transformers -> their usual names."""
    usual: Callable[[Mapping[str, Any], Callable[[str], None]], Mapping[str, Any]] = as_given
    """Returns the keys of `config.json` in the form that other families have, and reports mistakes."""
    other_forms: Mapping[str, str] = field(default_factory=dict)
    """Further architectures whose folders can be read as this family, with their `model_type`. A folder that
    another family calls its own is read as this one only on request."""
    other_types: tuple[str, ...] = ()
    """Further values of `model_type` with which vLLM reads the architecture as the same."""
    notice: str = ""
    """Printed when a folder of this family was written: what else is needed to open it."""
    caveat: Callable[[Model], str] = lambda model: ""
    """Returns what the libraries compute differently in a model; "" if nothing."""
    is_unread_by_peft: bool = False
    """Whether PEFT 0.21.2 takes the models for ones without experts: it finds joined experts by `model_type`,
    in `_MODEL_TO_CONVERSION_PATTERN` (`utils/transformers_weight_conversion.py`)."""
    whole_heads: bool = False
    """Whether transformers opens a model only if the number of heads divides the hidden size, also if heads
    have a size of their own."""
    mixture: str = ""
    """The family of the model that results from copying the MLP of a dense one into experts."""

    @property
    def has_experts(self) -> bool:
        return "experts" in self.keys

    @property
    def is_rotary(self) -> bool:
        return self.arguments.get("position_embedding_type") == "rope"

    @property
    def is_latent(self) -> bool:
        """Whether attention is multi-latent: then Megatron has yarn as a kind of rotary positions."""
        return bool(self.arguments.get("multi_latent_attention"))

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
