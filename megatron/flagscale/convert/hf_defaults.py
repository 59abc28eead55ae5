"""The defaults of the configuration classes of transformers: what a key that `config.json` lacks stands for.

`python -m megatron.flagscale.convert.hf_defaults` asks every class of a causal language model, and those
of models with pictures, and prints the catalog that is committed as `hf_defaults.json`. Reading it takes the
standard library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_suffix(".json")
_WITH_PICTURES = ("llava", "llava_onevision", "clip_vision_model", "siglip_vision_model")
"""Models with pictures, and their towers; transformers does not count them among causal language models."""


@cache
def _catalog() -> dict[str, Any]:
    catalog: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return catalog


def class_defaults(model_type: str) -> Mapping[str, Any]:
    """Return the default of each key of a class; empty if transformers has no class of that type.

    A default is the one that the class declares; null often means that the class computes the value from
    other keys. `rope_theta` is the base of rotary positions if none is given; `rope_parameters` is what the
    class makes of a file without any key of them.
    """
    found: Mapping[str, Any] = _catalog()["classes"].get(model_type, {})
    return found


@cache
def all_keys() -> frozenset[str]:
    """Return the keys of all classes."""
    return frozenset(key for defaults in _catalog()["classes"].values() for key in defaults)


def generation_defaults() -> Mapping[str, Any]:
    """Return the keys for generating text, which older folders hold in `config.json`, with their defaults."""
    defaults: Mapping[str, Any] = _catalog()["generation"]
    return defaults


def build_catalog() -> dict[str, Any]:
    """Return the catalog of the installed transformers; classes that need arguments are left out."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_types = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *_WITH_PICTURES})
    return {
        "version": transformers.__version__,
        "generation": dict(sorted(transformers.GenerationConfig()._get_default_generation_params().items())),
        "classes": dict(_described(model_types)),
    }


def _described(model_types: Iterable[str]) -> Iterable[tuple[str, dict[str, Any]]]:
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    shared = {one.name: one.default for one in dataclasses.fields(PreTrainedConfig)}
    for model_type in model_types:
        kind = CONFIG_MAPPING[model_type]
        if kind.has_no_defaults_at_init:
            continue
        made = kind()
        declared = {one.name: _declared(one) for one in dataclasses.fields(kind)}
        own = {name: value for name, value in declared.items() if name not in shared or value != shared[name]}
        # Some defaults are set while an object is made, such as the share of a head that is rotated.
        late = {name: value for name, value in vars(made).items() if name not in {*declared, *_SET_ANYWAY}}
        own |= {name: value for name, value in late.items() if not name.startswith("_")}
        if getattr(made, "rope_parameters", None):
            own = {"rope_theta": kind.default_theta, **own, "rope_parameters": made.rope_parameters}
        yield model_type, {name: value for name, value in sorted(own.items()) if _is_plain(value)}


_SET_ANYWAY = ("id2label", "label2id", "ignore_keys_at_rope_validation", "base_model_tp_plan")
"""What every object of a class holds beside its keys."""


def _declared(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:  # a configuration within it
        return False
    return True


def _print_catalog() -> None:
    with contextlib.redirect_stdout(sys.stderr):
        catalog = build_catalog()
    lines = [f" {json.dumps(name)}: {json.dumps(one)}" for name, one in catalog.pop("classes").items()]
    head = [f"{json.dumps(name)}: {json.dumps(one)}," for name, one in catalog.items()]
    print("{" + "\n".join(head), '"classes": {', ",\n".join(lines), "}}", sep="\n")


if __name__ == "__main__":
    _print_catalog()
