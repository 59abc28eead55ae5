"""The adapters (LoRA) that a server serves beside its model: `enable_lora` and `lora_modules`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flagscale.checks.adapter_folder import module_of, problems
from flagscale.checks.model_folder import is_path, read_config
from flagscale.checks.stored_tensors import Stored
from flagscale.checks.weight_files import weights_of
from flagscale.errors import Violation

MODULES, RANK = "lora_modules", "max_lora_rank"


def adapter_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield every violation in the adapters of a model, by dest."""
    given = values.get(MODULES)
    if not given:
        return
    if not values["enable_lora"]:
        yield MODULES, f"`{MODULES}` has no effect without `enable_lora: true`"
    listed = given if isinstance(given, list) else [given]
    modules = [module_of(one) for one in listed]
    for text, module in zip(listed, modules, strict=True):
        if module is None:
            yield MODULES, f"{text!r} is not an adapter; write NAME=FOLDER"
    names = Counter(module[0] for module in modules if module)
    for name in (name for name, count in names.items() if count > 1):
        yield MODULES, f"`{MODULES}` names {name} more than once"
    base = _weights(values)
    for module in modules:
        if module and is_path(module[1]):
            for what in problems(Path(module[1]), values[RANK], base):
                yield MODULES, what


def _weights(values: Mapping[str, Any]) -> Mapping[str, Stored]:
    """Return the stored tensors of the model's folder; none if it has none, or cannot be read."""
    folder = Path(str(values["model"]))
    try:
        return weights_of(folder, read_config(folder))[0]
    except ValueError:
        return {}
