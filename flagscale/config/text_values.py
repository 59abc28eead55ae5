"""Values of text keys as they were written: YAML reads `0022` as 18, `1.10` as 1.1 and `yes` as true."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

from flagscale.config.source_map import SourceMap


def restore_texts(config: DictConfig, source_map: SourceMap) -> None:
    """Give each text key of the experiment level its value as written, in place, before any key is resolved.

    Interpolations of such a key then insert that text too. A value whose text is not known is left as it is.
    """
    experiment = config._get_node("experiment") if "experiment" in config else None
    if not any(_as_written(*each, source_map) for each in _keys(experiment, "experiment")):
        return  # the usual case, in which the schema is not needed
    from flagscale.config.schema import ExperimentSection

    for node, key, path in _text_keys(experiment, ExperimentSection, "experiment"):
        if text := _as_written(node, key, path, source_map):
            node[key] = text


def _as_written(node: DictConfig | ListConfig, key: Any, path: str, source_map: SourceMap) -> str | None:
    """Return the text of a number or a switch that was written in another form; None for other values."""
    try:
        value = node[key]
    except OmegaConfBaseException:
        return None  # reported when the configuration is loaded
    if not isinstance(value, int | float):
        return None
    text = source_map.text(path, value)
    # `4` and `true` stay what they are: a key that needs a number or a switch may refer to them.
    return None if text == (str(value).lower() if isinstance(value, bool) else repr(value)) else text


def _is_group(node: Any) -> bool:
    """Return whether a node holds keys or items itself."""
    if not isinstance(node, DictConfig | ListConfig):
        return False
    return not (node._is_none() or node._is_interpolation() or node._is_missing())


def _names(node: DictConfig | ListConfig) -> list[Any]:
    """Return the keys of a group, or the indices of a list."""
    return list(range(len(node)) if isinstance(node, ListConfig) else node.keys())


def _keys(node: Any, path: str) -> Iterator[tuple[DictConfig | ListConfig, Any, str]]:
    """Yield (group, key, key path) of each given key below a node."""
    if _is_group(node):
        for key in _names(node):
            yield node, key, f"{path}.{key}"
            yield from _keys(node._get_node(key), f"{path}.{key}")


def _text_keys(node: Any, kind: Any, path: str) -> Iterator[tuple[DictConfig | ListConfig, Any, str]]:
    """Yield (group, key, key path) of each given key whose type in the schema is `Text`."""
    from flagscale.config.schema import Section

    if not _is_group(node):
        return
    named, other = {}, None
    if isinstance(kind, type) and issubclass(kind, Section):
        named = get_type_hints(kind, include_extras=True)
        other = (*get_args(named.pop("__pydantic_extra__", None)), None, None)[1]
    elif get_origin(kind) is dict:
        other = get_args(kind)[1]
    elif get_origin(kind) is list:
        other = get_args(kind)[0]
    for key in _names(node):
        type_ = named.get(str(key), other)
        if _is_text(type_):
            yield node, key, f"{path}.{key}"
        else:
            yield from _text_keys(node._get_node(key), type_, f"{path}.{key}")


def _is_text(kind: Any) -> bool:
    """Return whether a type is `Text`, perhaps with further checks, or `Text | None`."""
    from flagscale.config.key_types import AS_TEXT

    if get_origin(kind) in (Union, UnionType):
        return any(map(_is_text, get_args(kind)))
    # Annotations of annotations are merged into one.
    return AS_TEXT in getattr(kind, "__metadata__", ())
