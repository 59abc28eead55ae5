"""Convert a model's description to Hugging Face's `config.json`, and back. Standard library only.

Versions 4 and 5 of `transformers` name the precision (`torch_dtype`, `dtype`) and the rotary positions
(see `hf_rope`) differently. Both can open the files written here, and the files of both can be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flagscale.checks.model_folder import misspelt_architecture
from flagscale.errors import Problem, UserError, short
from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.families.base import DERIVED, SIZE, Family, Setting
from megatron.flagscale.convert.families.llava import FORMS
from megatron.flagscale.convert.hf_keys import surplus_keys
from megatron.flagscale.convert.hf_rope import PARTIAL, Report, read_rope, rope_values, write_rope
from megatron.flagscale.convert.json_values import is_positive, is_size, same
from megatron.flagscale.convert.model import DTYPES, Model

_SIZES = ("layers", "hidden", "heads", "vocab", "positions", "groups", "head_dim", "ffn")
_SIZES_OF_SOME = ("experts", "topk", "shared", "dense_ffn")
_COUNTS_OF_SOME = ("dense", "mtp")
"""Sizes that only some families have; the last ones may be 0."""
_MOST_MLPS = 1_000_000
"""Layers times experts: the names of the tensors of more would fill the memory."""


def read_config(config: Mapping[str, Any], where: str, family: str | None = None) -> Model:
    """Return the model that a `config.json` describes; `family` is the family requested by the user, or None.

    A missing key has the default of the family's configuration class in transformers.

    Raises:
        UserError: the architecture is unknown, a key is missing, a key that is not understood may change the
            model, or Megatron has no argument for a value. Reports everything that is wrong.
    """
    found = _family(config, where, family)
    problems: list[Problem] = []

    def report(what: str) -> None:
        problems.append(Problem(what, where))

    config = _with_usual_names(config, found, report)
    values = {**found.class_defaults, **config}
    rope = rope_values(config, found.class_defaults, report) if found.is_rotary else {}
    if found.is_rotary:
        values[PARTIAL] = rope.get(PARTIAL, 1.0)
    settings = {one.argument: _setting(values, one, report) for one in found.settings}
    fixed = {**({PARTIAL: 1.0} if found.is_rotary else {}), **found.config}
    for name in fixed.keys() - {one.key for one in found.settings}:
        if not same(values.get(name, fixed[name]), fixed[name]):
            report(f"`{name}` is {short(values[name])}; only {fixed[name]!r} is supported")
    known, unknown = _sizes(values, found, report)
    if not unknown & {"heads", "groups"} and known["heads"] % known["groups"]:
        assumed = "" if found.keys.get("groups") in config else ", the default if the number is missing"
        report(f"{known['heads']} attention heads cannot be divided into {known['groups']} groups{assumed}")
    tied = values.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        report(f"`tie_word_embeddings` is {short(tied)}, not true or false")
    model = Model(
        family=found.name,
        **known,
        norm_eps=_number(values, found, "norm_eps", report),
        rope=read_rope(rope, found.scalings, report, is_latent=found.is_latent) if found.is_rotary else None,
        tied=tied is True,
        dtype=_dtype(config, report),
        window=_window(values, found, known["positions"], report),
        attention_dropout=_dropout(values, found, "attention_dropout", report),
        hidden_dropout=_dropout(values, found, "hidden_dropout", report),
        settings=settings,
        vision=None,
    )
    if model.layers * max(model.experts, 1) > _MOST_MLPS:
        report(f"`{found.keys['layers']}` is {model.layers}, more than any model has")
    is_known = not unknown and not any(value is _WRONG for value in settings.values())
    for key, check in found.checks.items():
        if is_known and (what := check(values.get(key), model)):
            report(f"`{key}` is {short(values.get(key))}; {what}")
    problems += surplus_keys(config, found, where)
    if problems:
        raise UserError(problems)
    return model


def _family(config: Mapping[str, Any], where: str, wanted: str | None) -> Family:
    architectures, model_type = config.get("architectures") or [], config.get("model_type")
    if not isinstance(architectures, list) or not all(isinstance(one, str) for one in architectures):
        raise UserError([Problem(f"`architectures` is {short(architectures)}, not a list of names", where)])
    if model_type is not None and not isinstance(model_type, str):
        raise UserError([Problem(f"`model_type` is {short(model_type)}, not a name", where)])
    if not architectures and model_type is None:
        raise UserError([Problem("neither `architectures` nor `model_type` tells what the model is", where)])
    known = list(registry.families(wanted))
    field, name = ("architecture", architectures[0]) if architectures else ("model_type", str(model_type))
    # A family that calls the form its own comes first.
    fitting = [one for one in known if name == getattr(one, field) or one.model_type == one.forms.get(name)]
    fitting += [one for one in known if one not in fitting and name in one.forms]
    if not fitting:
        names = sorted({one for family in known for one in _names(family, field)})
        names += [getattr(form, field) for form in FORMS]
        what = f"the {field} {name} is not supported; known: {', '.join(names)}"
        raise UserError([Problem(what, where, misspelt_architecture(name, names))])
    named = [family for family in fitting if wanted in (None, family.name)]
    if not named:
        raise UserError(f"{where}: the model is {name}, not {wanted}")
    found = _variant(config, [one for one in named if getattr(one, field) == getattr(named[0], field)])
    expected = found.forms.get(name, found.model_type)
    if model_type not in (None, expected, *found.other_types):
        what = f"`model_type` is {model_type!r}, but {name} has {expected!r}"
        raise UserError([Problem(f"{what}: transformers follows the first, vLLM the second", where)])
    return found


def _variant(config: Mapping[str, Any], same_class: Sequence[Family]) -> Family:
    """Return the first of the families of a class whose fixed values the keys have, or else the first."""
    for family in same_class:
        values = {**family.class_defaults, **config}
        if all(same(values.get(key, fixed), fixed) for key, fixed in family.config.items()):
            return family
    return same_class[0]


def _with_usual_names(config: Mapping[str, Any], family: Family, report: Report) -> Mapping[str, Any]:
    """Return the keys in the form and by the names that the family gives them."""
    config = family.usual(config, report)
    usual = {key: value for key, value in config.items() if key not in family.other_keys}
    for other, key in family.other_keys.items():
        if other in config and not same(usual.setdefault(key, config[other]), config[other]):
            what = f"`{key}` is {short(usual[key])}, but `{other}`, which means the same, is"
            report(f"{what} {short(config[other])}")
    return usual


def _names(family: Family, field: str) -> Iterable[str]:
    return family.forms if field == "architecture" else (family.model_type,)


def _value(values: Mapping[str, Any], family: Family, field: str, known: Mapping[str, Any]) -> Any:
    """Return the value of a field's key, or what the family makes of null; None if there is neither."""
    value = values.get(family.keys.get(field, ""))
    derived = {**DERIVED, **family.derived}
    return derived[field](known) if value is None and field in derived else value


def _sizes(values: Mapping[str, Any], family: Family, report: Report) -> tuple[dict[str, int], set[str]]:
    """Return the sizes, and the fields of those that are wrong: they are 1, and no other mistake follows."""
    known: dict[str, int] = {}
    unknown: set[str] = set()
    own = [field for field in (*_SIZES_OF_SOME, *_COUNTS_OF_SOME) if field in family.keys]
    for field in (*_SIZES, *own):
        value = _value(values, family, field, known)
        may_be_none = field in _COUNTS_OF_SOME and same(value, 0)
        if not is_size(value) and not may_be_none:
            expected = "a whole number of at least 0" if field in _COUNTS_OF_SOME else SIZE.text
            report(_wrong(family.keys[field], value, expected))
            value = 1
            unknown.add(field)
        known[field] = value
    hidden, heads = known["hidden"], known["heads"]
    is_split = family.whole_heads or values.get(family.keys.get("head_dim", "")) is None
    if is_split and not unknown & {"hidden", "heads"} and hidden % heads:
        report(f"`{family.keys['hidden']}` {hidden} cannot be divided into {heads} attention heads")
    turns_all = family.is_rotary and not family.is_latent and same(values[PARTIAL], 1.0)
    if turns_all and not unknown & {"hidden", "heads", "head_dim"} and known["head_dim"] % 2:
        report(f"a head has {known['head_dim']} numbers, but rotary positions need an even number of them")
    has_both = family.has_experts and not unknown & {"topk", "experts"}
    if has_both and known["topk"] > known["experts"]:
        report(f"`{family.keys['topk']}` is {known['topk']}, but there are {known['experts']} experts")
    return known, unknown


def _wrong(key: str, value: Any, expected: str) -> str:
    return f"`{key}` is missing or null" if value is None else f"`{key}` is {short(value)}, not {expected}"


_WRONG = object()
"""The value of a setting that is wrong, so that no other mistake follows from it."""


def _setting(values: Mapping[str, Any], setting: Setting, report: Report) -> Any:
    value = values.get(setting.key)
    value = setting.unset if value is None else value
    for known, argument in setting.values.items():
        if same(value, known):
            return argument
    if setting.values:
        known = " or ".join(map(repr, setting.values))
        report(f"`{setting.key}` is {short(value)}; only {known} is supported")
    elif setting.kind.fits(value):
        return value
    else:
        report(_wrong(setting.key, value, setting.kind.text))
    return _WRONG


def _number(values: Mapping[str, Any], family: Family, field: str, report: Report) -> float:
    value = _value(values, family, field, {})
    if is_positive(value):
        return float(value)
    report(_wrong(family.keys[field], value, "a positive number"))
    return 1.0


def _dropout(values: Mapping[str, Any], family: Family, field: str, report: Report) -> float:
    value = _value(values, family, field, {})
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        report(_wrong(family.keys[field], value, "a number from 0 to 1"))
        value = 0
    return float(value)


def _window(values: Mapping[str, Any], family: Family, positions: int, report: Report) -> int:
    """Return the size of the window; 0 if it is not shorter than the longest sequence."""
    value = _value(values, family, "window", {})
    if type(value) is not int or value < 0 or same(values.get(family.keys.get("window", "")), 0):
        report(_wrong(family.keys["window"], value, "a positive whole number"))
        return 0
    return value if value < positions else 0


def _dtype(config: Mapping[str, Any], report: Report) -> str:
    given = next((config[key] for key in ("dtype", "torch_dtype") if config.get(key) is not None), "float32")
    dtype = str(given).removeprefix("torch.")
    if not isinstance(given, str) or dtype not in DTYPES.values():
        report(f"`dtype` {dtype} is not supported; use one of {', '.join(DTYPES.values())}")
    return dtype


def write_config(model: Model, special: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `config.json`; `special` holds the tokenizer's ids (`eos_token_id`, ...)."""
    family = registry.load(model.family)
    sizes = {key: getattr(model, field) for field, key in family.keys.items()}
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **sizes,
        **({family.keys["window"]: model.window or None} if "window" in family.keys else {}),
        **(write_rope(model.rope) if model.rope else {}),
        "tie_word_embeddings": model.tied,
        "dtype": model.dtype,
        "torch_dtype": model.dtype,
        "use_cache": True,
        **family.config,
        **{key: value(model) if callable(value) else value for key, value in family.written.items()},
        **{setting.key: _write_setting(setting, model) for setting in family.settings},
        **special,
    }


def _write_setting(setting: Setting, model: Model) -> Any:
    value = model.settings[setting.argument]
    return next((key for key, argument in setting.values.items() if argument == value), value)
