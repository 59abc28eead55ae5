"""Models by their keys and stored tensors, with the precision in which vLLM 0.32 computes them on CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """Keys of `config.json`, the codes of its tensors, its precision, and vLLM's by `dtype`."""

    config: Mapping[str, Any]
    codes: tuple[str, ...]
    own: str
    auto: str
    runner: str = "auto"
    others: Mapping[str, str] = field(default_factory=dict)


CASES = {
    "float32": Case({"dtype": "float32"}, ("F32",), "float32", "bfloat16", "auto", {"float32": "float32"}),
    "half of float32": Case(
        {"dtype": "float32"}, ("F32",), "float32", "bfloat16", "auto", {"half": "float16"}
    ),
    "float16": Case({"dtype": "float16"}, ("F16",), "float16", "float16"),
    "bfloat16": Case({"dtype": "bfloat16"}, ("BF16",), "bfloat16", "bfloat16"),
    "float64": Case({"dtype": "float64"}, ("F64",), "float64", "bfloat16"),
    "the key of version 4": Case({"torch_dtype": "float32"}, ("F32",), "float32", "bfloat16"),
    "both keys": Case({"torch_dtype": "float32", "dtype": "float16"}, ("F16",), "float16", "float16"),
    "both keys, lower": Case({"torch_dtype": "float16", "dtype": "float32"}, ("F32",), "float32", "bfloat16"),
    "null beside the old key": Case(
        {"torch_dtype": "float16", "dtype": None}, ("F16",), "float16", "float16"
    ),
    "no key": Case({}, ("F32",), "float32", "bfloat16"),
    "no key, float16": Case({}, ("F16",), "float16", "float16"),
    "no key, bfloat16": Case({}, ("BF16",), "bfloat16", "bfloat16"),
    "no key, mixed": Case({}, ("BF16", "F32"), "float32", "bfloat16"),
    "no key, with numbers": Case({}, ("F16", "I64"), "float16", "float16"),
    "no key and no safetensors": Case({}, (), "float32", "bfloat16"),
    "stored in float32": Case({"dtype": "bfloat16"}, ("F32",), "bfloat16", "bfloat16"),
    "a pooling model": Case({"dtype": "float32"}, ("F32",), "float32", "float16", "pooling"),
}
