"""Several validation sets, each evaluated and reported separately: their rules and their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from flagscale.checks.blend import parse
from flagscale.checks.schedule import DEFAULT_EVAL_INTERVAL
from flagscale.errors import Violation

OF_EACH_SET = ("validation_set_names", "validation_set_intervals")
"""The arguments (by dest) that hold one value per set."""


def validation_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield each rule of validation sets that the arguments (by dest) break."""
    if not values.get("multiple_validation_sets"):
        for name in OF_EACH_SET:
            if values.get(name):
                yield name, f"`{name}` needs `multiple_validation_sets: true`"
        return
    interval = values.get("eval_interval") or DEFAULT_EVAL_INTERVAL
    for own in values.get("validation_set_intervals") or ():
        if own < 1 or own % interval:
            what = f"{own} must be a multiple of eval_interval {interval}"
            yield "validation_set_intervals", what
    names = Counter(values.get("validation_set_names") or ())
    for name in (name for name, times in names.items() if times > 1):
        yield "validation_set_names", f"`{name}` is given twice"
    if values.get("per_split_data_args_path"):
        return  # the file says how many sets there are
    sets = values.get("valid_data_path") or ()
    try:
        found, weights = parse(sets)
    except ValueError:
        return  # reported with the data
    if not sets:
        what = "`multiple_validation_sets` needs `valid_data_path`: the prefixes of the data sets to evaluate"
        yield "multiple_validation_sets", what
    elif weights:
        what = "the sets are evaluated separately; remove the weights or `multiple_validation_sets`"
        yield "valid_data_path", what
    else:
        for name in OF_EACH_SET:
            given = values.get(name)
            if given and len(given) != len(found):
                what = f"{len(given)} values for the {len(found)} data sets of valid_data_path"
                yield name, f"{what}; give one for each"


def set_names(prefixes: Sequence[str]) -> list[str]:
    """Return a name for each set: the file name of its prefix, with as many folders as tell them apart."""
    parts = [PurePath(prefix).parts for prefix in prefixes]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len({*names}) == len(names):
            return names
    return [f"{prefix} ({number})" for number, prefix in enumerate(prefixes, 1)]
