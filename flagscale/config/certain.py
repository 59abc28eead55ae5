"""The rules that are broken whatever the arguments with mistakes are meant to be.

A wrong value would be reported again by every rule that uses it. So the rules are applied to several
plausible values in its place, and only those violations count that all of them have in common, word for word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flagscale.config.catalog import Option
from flagscale.errors import Violation

_PLAUSIBLE: Mapping[str, tuple[Any, ...]] = {
    "int": (1, 2, 4, 8, 64, 4096),
    "float": (1.0, 0.5, 1e-3, 1e-6, 1e-9, 0.0),
    "bool": (True, False),
}


def certain_violations(
    find: Callable[[Mapping[str, Any]], Iterable[Violation]],
    values: Mapping[str, Any],
    unknown: Mapping[str, Option],
) -> list[Violation]:
    """Return what `find` reports for `values` (by dest) whatever the values of `unknown` arguments are."""
    choices = {dest: _plausible(option) for dest, option in unknown.items()}
    guessed = {dest for dest, one in choices.items() if len(one) > 1}
    common: dict[Violation, None] | None = None
    for guess in _guesses(choices):
        found = dict.fromkeys(find({**values, **guess}))
        if any(dest in guessed for dest, _ in found):
            continue  # not a plausible value
        # Of a path or a list, no value can be guessed: what is wrong with the default is not a mistake.
        found = {one: None for one in found if one[0] not in unknown}
        common = found if common is None else {one: None for one in common if one in found}
    return list(common or ())


def _guesses(choices: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Yield values for the unknown arguments; without any, one empty guess."""
    for shift in (0, 1) if len(choices) > 1 else (0,):
        for index in range(max(map(len, choices.values()), default=1)):
            picked = (one[(index + shift * place) % len(one)] for place, one in enumerate(choices.values()))
            yield dict(zip(choices, picked, strict=True))


def _plausible(option: Option) -> tuple[Any, ...]:
    if option.type.startswith("human_readable_int"):
        return _PLAUSIBLE["int"]
    if option.takes_many or option.kind == "append":
        return (option.default,)
    if option.choices:
        return option.choices[:3] if option.type == "str" else (option.default,)
    return _PLAUSIBLE.get(option.type, (option.default,))
