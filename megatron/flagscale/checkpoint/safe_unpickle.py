"""Read a file of `torch.save` without running any code in it and without importing the engine.

A checkpoint's arguments hold instances of the engine's classes (the choice of a backend, for example).
Importing the engine for them takes seconds, and on a machine without CUDA it needs patches of torch that
break other libraries in the process. Such values become `Unknown`; everything else is plain data.
"""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import types
import zipfile
from pathlib import Path
from typing import Any

import torch

from megatron.flagscale.chips import HOST


class Unknown:
    """Replaces an instance of a class that is not imported, whatever a pickle puts into it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __repr__(self) -> str:
        return "<an object of another package>"

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Ignore an item of a list or queue."""

    def extend(self, items: Any) -> None:
        """Ignore items of a list or queue."""

    def add(self, item: Any) -> None:
        """Ignore an item of a set."""


def _tensor(*positional: Any) -> Any:
    """Return a tensor over a storage that torch has read; other values than plain ones are not passed on."""
    storage, offset, size, stride, *_ = positional
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("a tensor has no storage")
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


_PLAIN = {
    ("argparse", "Namespace"): argparse.Namespace,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if found := _PLAIN.get((module, name)):
            return found
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        return Unknown


_MODULE = types.SimpleNamespace(__name__="safe_unpickle", Unpickler=_Unpickler)


def load(data: bytes) -> Any:
    """Return the object that `torch.save` wrote as `data`; raise `UnpicklingError` if it is damaged."""
    _check(io.BytesIO(data))
    return torch.load(io.BytesIO(data), map_location=HOST, pickle_module=_MODULE, weights_only=False)


def load_file(path: Path) -> Any:
    """Return the object in a file of `torch.save`; a tensor is read from the disk when it is used.

    Raises:
        OSError: the file is missing or cannot be opened.
        UnpicklingError: it is damaged, or torch before 1.6 wrote it.
    """
    path.stat()
    _check(path)
    return torch.load(path, map_location=HOST, pickle_module=_MODULE, weights_only=False, mmap=True)


def _check(file: Path | io.BytesIO) -> None:
    if not zipfile.is_zipfile(file):
        raise pickle.UnpicklingError("damaged or truncated")
    with zipfile.ZipFile(file) as archive:
        if any(name.endswith("constants.pkl") for name in archive.namelist()):
            raise pickle.UnpicklingError("a program of TorchScript, not data")
