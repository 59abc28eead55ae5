"""Measure which tensors a forward pass keeps for its backward pass, and who keeps them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from flagscale_testing.layer_memory.cases import Kept

_NOT_A_CALLER = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def kept(run: Callable[[], torch.Tensor], layer: torch.nn.Module) -> list[Kept]:
    """Return what stays in memory after `run()`, a forward pass of `layer`, until its backward pass.

    A storage counts if it was created during the pass and is still alive, whoever holds it: saved tensors,
    attributes of a context, closures. The input therefore counts if `run` creates it, and if anything holds
    it. Tensors that existed before, as parameters or tables that layers share, do not count, nor do those on
    other devices than the layer's. The result does not count unless it is saved, because it is the next
    layer's input.
    """
    watch = _Watch(layer, next(layer.parameters()).device.type)
    with watch.watching():
        end = run().grad_fn
    rows = list(watch.alive())
    del end
    return rows


@dataclass
class _Watch:
    """Notes of one forward pass: who created and who saved each storage."""

    layer: torch.nn.Module
    device: str
    created: dict[int, StorageWeakRef] = field(default_factory=dict)
    who: dict[int, Kept] = field(default_factory=dict)
    saved: set[int] = field(default_factory=set)
    path: list[str] = field(default_factory=lambda: [""])
    child: str = ""
    """The child of the layer that runs, or ran last: what the layer itself keeps belongs to it."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in self.layer.named_modules():
                enter = module.register_forward_pre_hook(lambda *_, name=name: self._enter(name))
                leave = module.register_forward_hook(lambda *_: self._leave(), always_call=True)
                stack.callback(enter.remove)
                stack.callback(leave.remove)
            # A saved result that kept its history would hold itself in memory, therefore `detach`.
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self.save, lambda tensor: tensor))
            stack.enter_context(_Creations(self))
            yield

    def create(self, tensor: torch.Tensor, operation: str) -> None:
        storage = tensor.untyped_storage()
        self.created[storage._cdata] = StorageWeakRef(storage)
        self._note(tensor, f"created by {operation}")

    def save(self, tensor: torch.Tensor) -> torch.Tensor:
        if _id(tensor) not in self.saved:
            self.saved.add(_id(tensor))
            self.who.pop(_id(tensor), None)  # in the order of savings, not of creations
            self._note(tensor, _caller())
        return tensor.detach()

    def alive(self) -> Iterator[Kept]:
        for storage, who in self.who.items():
            if storage in self.created and (nbytes := _size(self.created[storage])):
                yield replace(who, nbytes=nbytes)

    def _enter(self, name: str) -> None:
        self.path.append(name)
        self.child = name.partition(".")[0] or self.child

    def _leave(self) -> None:
        self.path.pop()

    def _note(self, tensor: torch.Tensor, operation: str) -> None:
        dtype = str(tensor.dtype).removeprefix("torch.")
        self.who[_id(tensor)] = Kept(self.path[-1] or self.child, operation, tuple(tensor.shape), dtype, 0)


class _Creations(TorchDispatchMode):
    """Tells a watch of every tensor that an operation returns."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        existed = {_id(tensor) for tensor in _tensors((args, [*(kwargs or {}).values()]))}
        for tensor in _tensors(result):
            if _id(tensor) not in existed and tensor.device.type == self.watch.device:
                self.watch.create(tensor, func.overloadpacket.__name__)
        return result


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among an operation's arguments or results."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _id(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _size(reference: StorageWeakRef) -> int:
    """Return the bytes of a storage, 0 if it was freed."""
    storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
    return 0 if storage is None else int(storage.nbytes())


def _caller() -> str:
    """Return the name of the innermost function outside torch."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(_NOT_A_CALLER):
        frame = frame.f_back
    return frame.f_code.co_qualname.replace(".<locals>", "")
