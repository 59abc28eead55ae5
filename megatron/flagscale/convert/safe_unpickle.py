"""Read a file of `torch.save` without running anything in it and without importing the engine.

A checkpoint's arguments hold values of the engine's classes (choices of a backend, say). Importing the engine
for them takes seconds, and on a machine without CUDA needs patches of torch that other libraries in the
process do not stand. Such values become `Unknown`; nothing else is made but data.
"""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import types
import zipfile
from typing import Any

import torch

from megatron.flagscale.chips import HOST


class Unknown:
    """Stands for a value of a class that is not imported."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("argparse", "Namespace"):
            return argparse.Namespace
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        return Unknown


_MODULE = types.SimpleNamespace(__name__="safe_unpickle", Unpickler=_Unpickler)


def load(data: bytes) -> Any:
    """Return the object that `data`, written by `torch.save`, stands for; `UnpicklingError` if it is not."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise pickle.UnpicklingError("damaged")
    return torch.load(io.BytesIO(data), map_location=HOST, pickle_module=_MODULE, weights_only=False)
