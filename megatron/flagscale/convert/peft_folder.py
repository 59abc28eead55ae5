"""A folder of PEFT with a LoRA adapter: `adapter_config.json` and `adapter_model.safetensors`.

Checked against PEFT 0.21.2 (`tuners/lora/config.py`, `utils/transformers_weight_conversion.py`) and vLLM 0.32
(`lora/peft_helper.py`, `lora/lora_model.py`).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from flagscale.checks.adapter_folder import CONFIG, PREFIX, WEIGHTS
from flagscale.checks.stored_tensors import stored_in
from flagscale.errors import Problem, UserError, short
from flagscale.files import write_atomic
from megatron.flagscale.convert.adapters import Adapter, Lora, Projection, settings_problems
from megatron.flagscale.convert.files import read_json
from megatron.flagscale.convert.huggingface import CODES, read_tensor
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.weight_writer import Planned, WeightWriter

_OTHER_WEIGHTS = ("adapter_model.bin", "adapter_model.pt")
_READ = ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights")
_HARMLESS = (
    *("task_type", "base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode"),
    # which modules have an adapter: the tensors show it
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    # how the first values were chosen
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    # without effect, unless another key is set that is refused
    *("megatron_core", "qalora_group_size"),
)
_OFF: tuple[Any, ...] = (None, False, 0, "", "none")
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")
"""What the values of `init_lora_weights` begin with that also change the weights of the base."""
_WHY = {
    "use_dora": "DoRA also scales the weights",
    "rank_pattern": "training has one rank for all projections",
    "alpha_pattern": "training has one alpha for all projections",
    "bias": "adapters in training have no biases",
    "lora_bias": "adapters in training have no biases",
    "modules_to_save": "whole modules are not a part of adapters in training",
    "fan_in_fan_out": "it stands for transposed weights, which no supported family has",
}


def names(projection: Projection) -> tuple[str, str]:
    """Return the names of A and B in a folder of PEFT."""
    module = f"{PREFIX}{projection.huggingface}"
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def is_folder(folder: Path) -> bool:
    """Return whether a folder is one of PEFT."""
    return (folder / CONFIG).is_file()


def open_folder(folder: Path, model: Model) -> Adapter:
    """Return the adapter in a folder, whose base is `model`.

    Raises:
        UserError: a setting is not supported, or it does not belong to the model; lists all reasons.
    """
    where = str(folder / CONFIG)
    config = read_json(folder / CONFIG)
    settings = (config.get("r"), config.get("lora_alpha"), config.get("lora_dropout") or 0.0)
    wrong = [Problem(what, where) for what in (*_not_supported(config), *settings_problems(*settings))]
    other = next((name for name in _OTHER_WEIGHTS if (folder / name).is_file()), "")
    if not (folder / WEIGHTS).is_file():
        hint = f"save it again with PEFT: {other} is a pickle, which could run code" if other else ""
        raise UserError([*wrong, Problem(f"no {WEIGHTS} found", str(folder), hint)])
    try:
        stored = stored_in(folder / WEIGHTS)
    except ValueError as error:
        raise UserError([*wrong, Problem(str(error))]) from None
    codes = sorted({one.dtype for one in stored.values()} - {*CODES.values()})
    if codes:
        what = f"its tensors are stored as {', '.join(codes)}; only {', '.join(CODES.values())} are supported"
        wrong.append(Problem(what, str(folder / WEIGHTS)))
    if wrong:
        raise UserError(wrong)
    rank, alpha, dropout = settings
    assert isinstance(rank, int)
    assert alpha is not None
    assert dropout is not None
    # rsLoRA divides by the root of the rank, training by the rank
    alpha = alpha * math.sqrt(rank) if config.get("use_rslora") else alpha
    lora = Lora(rank, alpha, dropout)
    shapes = {name: one.shape for name, one in stored.items()}
    return Adapter(
        folder / WEIGHTS, lora, model, names, shapes, lambda name: read_tensor(folder / WEIGHTS, name)
    )


def _not_supported(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        yield f"`peft_type` is {short(config.get('peft_type'))}; only 'LORA' is supported"
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGE_THE_BASE):
        yield f"`init_lora_weights` is {start!r}, which also changes the weights of the base"
    for name, value in config.items():
        if name in (*_READ, *_HARMLESS) or value in _OFF or value in ([], {}):
            continue
        if name == "target_parameters" and isinstance(value, list):
            joined = [one for one in value if not str(one).endswith(".weight")]
            if joined:
                yield f"`{name}` names {', '.join(joined)}: adapters of joined experts are not supported"
            continue
        why = f": {_WHY[name]}" if name in _WHY else ""
        yield f"`{name}` is {short(value)}, which is not supported{why}"


def write_folder(folder: Path, adapter: Adapter, base: str) -> int:
    """Write an adapter; return the number of bytes of its tensors.

    `base` is recorded as `base_model_name_or_path`; "" records none. The adapters of experts are written one
    by one: vLLM reads them like that, and PEFT joins them when it loads them.
    """
    # PEFT 0.21 takes the names of the experts' projections in `target_modules` for those of experts alone
    # (`_convert_peft_config_moe`), and finds other layers with the same names only in `target_parameters`.
    of_experts = {_leaf(one) for one in adapter.projections if one.entry.expert is not None}
    beside = [one for one in adapter.projections if one.entry.expert is None and _leaf(one) in of_experts]
    modules = {_leaf(one) for one in adapter.projections if one not in beside}
    lora = adapter.lora
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        # PEFT refuses a dropout on the parameters that hold joined experts.
        "lora_dropout": 0.0 if of_experts else lora.dropout,
        "target_modules": sorted(modules),
        "target_parameters": sorted({_parameter(one) for one in beside}) or None,
        "bias": "none",
        "use_rslora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    write_atomic(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    planned = []
    for projection in adapter.projections:
        for name, tensor in zip(names(projection), adapter.read(projection), strict=True):
            planned.append(Planned(name, CODES[tensor.dtype], tuple(tensor.shape), tensor.nbytes))
    with closing(WeightWriter(folder, planned, sys.maxsize, WEIGHTS)) as writer:
        for projection in adapter.projections:
            for name, tensor in zip(names(projection), adapter.read(projection), strict=True):
                writer.append(name, [tensor.contiguous().view(-1).view(torch.uint8).numpy()])
        writer.finish()
    return sum(one.size for one in planned)


def _leaf(projection: Projection) -> str:
    return projection.huggingface.rpartition(".")[2]


def _parameter(projection: Projection) -> str:
    """Return the ending of the parameter's name that all layers share."""
    return projection.huggingface.split(".", 3)[3] + ".weight"
