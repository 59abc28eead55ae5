"""Patches for a machine without CUDA: they map the engine's CUDA names to the CPU.

The trainer names CUDA everywhere (`device="cuda"`, `torch.cuda.current_device()`, tensor type names),
although these places do ordinary tensor work.
`torch.cuda.is_available()` stays False, because torch itself relies on it (dynamo, pinned memory, forks).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from megatron.flagscale.chips.cpu_stand_ins import Event, Stream, device_properties, memory_stats
from megatron.flagscale.patching import TORCH, Patch

_CPU = torch.device("cpu")


def _returning(value: Any) -> Callable[[Any], Any]:
    # Return a new function object for each name: dynamo rejects one object registered under two names.
    return lambda original: lambda *args, **kwargs: value


def _calling(function: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda original: lambda *args, **kwargs: function()


def _replaced_by(value: Any) -> Callable[[Any], Any]:
    return lambda original: value


def _means_cuda(device: Any) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or getattr(device, "type", None) == "cuda"


def _device_is_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> torch.Tensor:
        if _means_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return create


def _to_stays(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(original)
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if _means_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        if args and _means_cuda(args[0]):
            args = (_CPU, *args[1:])
        return original(self, *args, **kwargs)

    return to


def _itself(original: Any) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: self


def _cuda_type_name(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def type_name(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is not None:
            return original(self, dtype, *args, **kwargs)
        return original(self).replace("torch.", "torch.cuda.", 1)

    return type_name


def _uncompiled(original: Any) -> Callable[..., Any]:
    def compile(model: Any = None, **options: Any) -> Any:
        return model if model is not None else lambda function: function

    return compile


def _get_rng_state(original: Any) -> Callable[..., torch.Tensor]:
    return lambda *args, **kwargs: torch.get_rng_state()


def _set_rng_state(original: Any) -> Callable[..., None]:
    return lambda new_state, *args, **kwargs: torch.set_rng_state(new_state)


def _seed(original: Any) -> Callable[..., Any]:
    return lambda seed: torch.default_generator.manual_seed(seed)


def _own_generator(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def initialize(self: Any, *args: Any, generator: torch.Generator | None = None, **kwargs: Any) -> None:
        own = generator or torch.Generator().manual_seed(torch.initial_seed())
        original(self, *args, generator=own, **kwargs)

    return initialize


def _without_cuda(original: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(original, allow_no_cuda=True)


def _torch(names: str, make: Callable[[Any], Any], why: str) -> tuple[Patch, ...]:
    until = "the engine asks torch.accelerator instead of torch.cuda"
    return tuple(Patch(f"torch:{name}", make, why, "cpu", TORCH, until) for name in names.split())


PATCHES = (
    *_torch(
        "tensor zeros ones empty full rand randn randint arange linspace eye "
        "empty_like zeros_like ones_like full_like",
        _device_is_cpu,
        'The trainer creates its tensors with device="cuda", some pinned, which needs a CUDA driver.',
    ),
    *_torch(
        "Tensor.cuda Tensor.pin_memory nn.Module.cuda", _itself, "All tensors are already in host memory."
    ),
    *_torch(
        "Tensor.to", _to_stays, "Tied embeddings and checkpoints move tensors to the current CUDA device."
    ),
    *_torch("Tensor.record_stream", _returning(None), "There are no streams to keep memory alive for."),
    *_torch(
        "Tensor.type",
        _cuda_type_name,
        "Optimizers and gradient clipping compare type names with torch.cuda.*.",
    ),
    *_torch(
        "compile",
        _uncompiled,
        "The fused helpers are compiled at import, which needs a C++ compiler and takes minutes.",
    ),
    *_torch(
        "cuda.FloatTensor", _replaced_by(torch.FloatTensor), "Mixed precision modules compare types with it."
    ),
    *_torch("cuda.HalfTensor", _replaced_by(torch.HalfTensor), "As for cuda.FloatTensor."),
    *_torch("cuda.BFloat16Tensor", _replaced_by(torch.BFloat16Tensor), "As for cuda.FloatTensor."),
    *_torch("cuda.current_device", _returning(_CPU), "It is used as the device argument in about 60 places."),
    *_torch(
        "cuda.device_count", _returning(1), "Model parallel groups and seeds are set up only if there is one."
    ),
    *_torch(
        "cuda.set_device cuda.synchronize cuda.empty_cache cuda.ipc_collect cuda.reset_peak_memory_stats "
        "cuda.nvtx.range_push cuda.nvtx.range_pop",
        _returning(None),
        "There is no device to choose, wait for, or trace.",
    ),
    *_torch("cuda.Stream", _replaced_by(Stream), "Communication is queued on side streams."),
    *_torch("cuda.Event", _replaced_by(Event), "Side streams are ordered by events."),
    *_torch("cuda.current_stream cuda.default_stream", _calling(Stream), "Side streams wait for these."),
    *_torch("cuda.stream", _calling(Stream), "This context manager selects a side stream."),
    *_torch(
        "cuda.memory_stats", _calling(memory_stats), "--log-memory-to-tensorboard asks the CUDA allocator."
    ),
    *_torch(
        "cuda.get_device_properties",
        _calling(device_properties),
        "Arguments are checked against the architecture of the device.",
    ),
    *_torch(
        "cuda.get_device_capability",
        _returning((8, 0)),
        "Grouped products of experts, which torch supports on CPU as well, require Ampere or newer.",
    ),
    *_torch(
        "cuda.get_rng_state cuda.random.get_rng_state", _get_rng_state, "Checkpoints contain random states."
    ),
    *_torch(
        "cuda.set_rng_state cuda.random.set_rng_state", _set_rng_state, "Checkpoints contain random states."
    ),
    Patch(
        "torch:utils.data.DataLoader.__init__",
        _own_generator,
        "It draws the seed of its workers from the generator that dropout uses too, on a CPU; only the first "
        "rank of a tensor parallel group has one, and the others would then drop other activations.",
        "cpu",
        TORCH,
        "the engine gives its data loaders a generator",
    ),
    *_torch("cuda.manual_seed", _seed, "Model parallel seeds are set on the device."),
    Patch(
        "megatron.core.tensor_parallel.random:_get_cuda_rng_state",
        _get_rng_state,
        "Dropout and recomputation keep their own CUDA random state; on a CPU it is the CPU's.",
        "cpu",
    ),
    Patch(
        "megatron.core.tensor_parallel.random:_set_cuda_rng_state",
        _set_rng_state,
        "As for _get_cuda_rng_state.",
        "cpu",
    ),
    Patch(
        "megatron.training.training:initialize_megatron",
        _without_cuda,
        "It refuses to start without CUDA; an argument allows that, but `pretrain` does not pass it on.",
        "cpu",
        until="pretrain passes allow_no_cuda",
    ),
    Patch(
        "megatron.training.training:report_memory",
        _returning(None),
        "It prints statistics of the CUDA allocator, on every rank before and after the first saves.",
        "cpu",
    ),
    Patch(
        "megatron.core.transformer.moe.token_dispatcher:maybe_move_tensor_to_cpu",
        lambda original: _splits_become_lists,
        "Token counts become lists only if they are CUDA tensors, but all_to_all does not accept tensors.",
        "cpu",
    ),
)


def _splits_become_lists(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor
