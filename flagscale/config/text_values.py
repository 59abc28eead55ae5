"""Values of text keys as they were written: YAML reads `0022` as 18, `1.10` as 1.1 and `yes` as true."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from flagscale.config.schema import ExperimentSection, Section
from flagscale.config.source_map import SourceMap


def restore_texts(config: DictConfig, source_map: SourceMap) -> None:
    """Give each text key of the experiment level its value as written, in place, before any key is resolved.

    Interpolations of such a key then insert that text too. A value whose text is not known is left as it is.
    """
    experiment = config._get_node("experiment") if "experiment" in config else None
    for node, key, path in _text_keys(experiment, ExperimentSection, "experiment"):
        try:
            value = node[key]
        except OmegaConfBaseException:
            continue  # reported when the configuration is loaded
        if isinstance(value, int | float):
            text = source_map.text(path, value)
            # `4` and `true` stay what they are: a key that needs a number or a switch may refer to them.
            if text and text != (str(value).lower() if isinstance(value, bool) else repr(value)):
                node[key] = text


def _text_keys(node: Any, kind: Any, path: str) -> Iterator[tuple[DictConfig, Any, str]]:
    """Yield (mapping, key, key path) of each given key whose type in the schema is `Text`."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_interpolation() or node._is_missing():
        return
    named, other = {}, None
    if isinstance(kind, type) and issubclass(kind, Section):
        named = get_type_hints(kind, include_extras=True)
        other = (*get_args(named.pop("__pydantic_extra__", None)), None, None)[1]
    elif get_origin(kind) is dict:
        other = get_args(kind)[1]
    keys: list[Any] = list(node.keys())
    for key in keys:
        type_ = named.get(str(key), other)
        if _is_text(type_):
            yield node, key, f"{path}.{key}"
        else:
            yield from _text_keys(node._get_node(key), type_, f"{path}.{key}")


def _is_text(kind: Any) -> bool:
    """Return whether a type is `Text`, perhaps with further checks, or `Text | None`."""
    if get_origin(kind) in (Union, UnionType):
        return any(map(_is_text, get_args(kind)))
    # Annotations of annotations are merged into one.
    return _MARK in getattr(kind, "__metadata__", ())


_MARK = get_type_hints(ExperimentSection, include_extras=True)["exp_name"].__metadata__[0]
"""What distinguishes `Text` from `str`: `exp_name` is a plain `Text`."""
