"""Build one of the engine's transformer layers on meta tensors, as one rank of a job, and measure it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from flagscale_testing.layer_memory.cases import FULL, Case, Kept
from flagscale_testing.layer_memory.kept import kept
from flagscale_testing.one_rank import META, creating_on, one_rank


def measure(case: Case, device: torch.device | None = None) -> list[Kept]:
    """Return what one layer keeps: the second of two, because tables that the first leaves are shared.

    The tensors are real ones if a case has the option `on_cpu`, unless `device` says otherwise.
    """
    device = device or (torch.device("cpu") if "on_cpu" in case.options else META)
    with _one_rank(case), _on(device):
        config = _config(case)
        batch = case.sizes["micro_batch_size"]
        sequence = case.sizes["seq_length"] // case.degree("context")
        rows = sequence // case.degree("tensor_model") if case.sequence_parallel else sequence
        shared = _shared(case, config, sequence, device)
        shape = (rows, batch, config.hidden_size)
        given = torch.zeros(shape, dtype=_dtype(case), device=device, requires_grad=True)
        first, second = _layers(case, config, device)
        _forward(first, given, case.recompute == FULL, shared)
        return kept(lambda: _forward(second, given, case.recompute == FULL, shared), second)


def _forward(layer: Any, given: torch.Tensor, recompute: bool, shared: dict[str, Any]) -> torch.Tensor:
    from megatron.core import tensor_parallel

    def forward(hidden: torch.Tensor) -> Any:
        return layer(hidden, **shared)[0]

    # A copy, because autograd holds the leaves of its graph; in a model, the input is another layer's result.
    hidden = given.clone()
    # What `TransformerBlock` does for each layer (`uniform`, one layer at a time).
    out: torch.Tensor = tensor_parallel.checkpoint(forward, False, hidden) if recompute else forward(hidden)
    return out


def _shared(case: Case, config: Any, sequence: int, device: torch.device) -> dict[str, Any]:
    """Return what the model gives to all of its layers: a mask, and the angles of rotary positions."""
    from megatron.core.models.common.embeddings import RotaryEmbedding

    mask = rotary = None
    if case.implementation == "local":
        mask = torch.ones((1, 1, sequence, sequence), dtype=torch.bool, device=device)
    if not config.multi_latent_attention and "unrotated" not in case.options:
        rotary = RotaryEmbedding(config.kv_channels, rotary_percent=1.0)(case.sizes["seq_length"])
    return {"attention_mask": mask, "rotary_pos_emb": rotary}


def _layers(case: Case, config: Any, device: torch.device) -> Iterator[Any]:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.transformer.spec_utils import build_module

    from megatron.flagscale.layers.spec import layer_spec

    if case.implementation == "torch":
        block = layer_spec(SimpleNamespace(transformer=config))
        if config.multi_latent_attention:
            for spec in block.layer_specs:
                _take_widths(spec.submodules.self_attention.submodules)
    else:
        block = get_gpt_decoder_block_spec(config, False, normalization=config.normalization)
    for number, spec in enumerate(block.layer_specs, start=1):
        # The engine creates some small weights in host memory, or in float until it converts the whole model.
        yield build_module(spec, config=config, layer_number=number).to(device, _dtype(case))


def _take_widths(attention: Any) -> None:
    """Let the attention core of a commit that refuses latent attention read the widths from its tensors."""
    core = attention.core_attention
    if "k_channels" not in inspect.signature(core).parameters:

        def init(self: Any, *given: Any, k_channels: int = 0, v_channels: int = 0, **named: Any) -> None:
            core.__init__(self, *given, **named)

        attention.core_attention = type(core.__name__, (core,), {"__init__": init})


def _config(case: Case) -> Any:
    """Return the engine's configuration of a model of two such layers.

    It has RMSNorm, SwiGLU, rotary positions, and neither biases nor dropout. Fused kernels are off, as on
    every chip without TransformerEngine and Apex.
    """
    from megatron.core.transformer import MLATransformerConfig, TransformerConfig

    sizes = {name: size for name, size in case.sizes.items() if name not in _NOT_OF_THE_MODEL}
    if experts := sizes.pop("num_experts", None):
        sizes["num_moe_experts"] = experts
    is_latent = "kv_lora_rank" in sizes
    selective = case.recompute and case.recompute != FULL
    settings: dict[str, Any] = {
        "num_layers": 2,
        "normalization": "RMSNorm",
        "activation_func": torch.nn.functional.silu,
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "params_dtype": _dtype(case),
        "bf16": case.dtype == "bfloat16",
        "sequence_parallel": case.sequence_parallel,
        "perform_initialization": False,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "persist_layer_norm": False,
        "gradient_accumulation_fusion": False,
        "apply_rope_fusion": False,
        "recompute_granularity": "selective" if selective else None,
        "recompute_modules": list(case.recompute) if selective else None,
        # A job writes the scores of local attention in its own precision unless it asks for more.
        "attention_softmax_in_fp32": False,
    }
    if experts:
        settings |= {"moe_token_dispatcher_type": "alltoall", "moe_router_load_balancing_type": "none"}
    if is_latent:
        settings |= {"multi_latent_attention": True, "qk_layernorm": True, "rope_type": "rope"}
        settings["q_lora_rank"] = sizes.pop("q_lora_rank", None)
    for option in case.options:
        settings |= _SETTINGS[option]
    if 1 < case.degree("exchange") < case.degree("context"):
        settings["cp_comm_type"] = "a2a+p2p"
    config = (MLATransformerConfig if is_latent else TransformerConfig)(**settings, **sizes)
    for name, value in case.norms:
        setattr(config, name, value)
    return config


_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "layer_norm": {"normalization": "LayerNorm"},
    "qk_norm": {"qk_layernorm": True},
    "dropout": {"hidden_dropout": 0.1},
    "attention_dropout": {"attention_dropout": 0.1},
    "a2a": {"cp_comm_type": "a2a"},
    "ungated": {"gated_linear_unit": False, "activation_func": torch.nn.functional.gelu},
    "grouped": {"moe_grouped_gemm": True},
    "sigmoid": {"moe_router_score_function": "sigmoid"},
    "expert_bias": {"moe_router_enable_expert_bias": True},
    "router_fp32": {"moe_router_dtype": "fp32"},
    "shared_gate": {"moe_shared_expert_gate": True},
    "on_cpu": {},
    "unrotated": {},
    **{
        loss: {"moe_router_load_balancing_type": loss, "moe_aux_loss_coeff": 0.01}
        for loss in ("aux_loss", "seq_aux_loss", "global_aux_loss")
    },
}
"""What the planner's options are for the engine."""


def _dtype(case: Case) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, case.dtype)
    return dtype


_NOT_OF_THE_MODEL = ("seq_length", "micro_batch_size", "exchange_parallel_size")


def _one_rank(case: Case) -> AbstractContextManager[None]:
    """Run as the first rank of the case's job."""
    tensor, expert, context = (case.degree(name) for name in ("tensor_model", "expert_model", "context"))
    exchange = case.degree("exchange")
    return one_rank(
        tensor * expert * context,
        hierarchical_context_parallel_sizes=[exchange, context // exchange] if exchange > 1 else None,
        tensor_model_parallel_size=tensor,
        context_parallel_size=context,
        expert_model_parallel_size=expert,
        expert_tensor_parallel_size=case.sizes.get("expert_tensor_parallel_size", tensor),
    )


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """Make the engine create its tensors on a device, where attention keeps what its kernels keep."""
    from megatron.core import parallel_state

    with ExitStack() as stack:
        stack.enter_context(creating_on(device))
        if device == META:
            stack.enter_context(_Kernels())
            stack.enter_context(_balanced_experts())
            stack.enter_context(_silent_messages())
        # Another device's buffers must not be used.
        stack.enter_context(mock.patch.object(parallel_state, "_GLOBAL_MEMORY_BUFFER", None))
        parallel_state._set_global_memory_buffer()
        yield


@contextmanager
def _balanced_experts() -> Iterator[None]:
    """Give the same number of tokens to every expert: a meta tensor does not say how many it has."""
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher as Dispatcher

    count = Dispatcher.preprocess

    def preprocess(self: Any, routing_map: torch.Tensor) -> Any:
        tokens, experts = routing_map.shape
        chosen = torch.arange(tokens * self.config.moe_router_topk).view(tokens, -1) % experts
        balanced = torch.zeros(tokens, experts, dtype=torch.bool).scatter_(1, chosen, True)
        with mock.patch.object(torch.cuda, "current_device", return_value=balanced.device):
            return count(self, balanced)

    with mock.patch.object(Dispatcher, "preprocess", preprocess):
        yield


@contextmanager
def _silent_messages() -> Iterator[None]:
    """Send nothing: no group of processes takes meta tensors."""

    def nothing(*_: Any, **__: Any) -> list[Any]:
        return []

    # A mock would hold its arguments.
    with mock.patch.object(dist, "P2POp", nothing), mock.patch.object(dist, "batch_isend_irecv", nothing):
        yield


class _Kernels(TorchFunctionMode):
    """Attention and dropout on meta tensors that keep what the kernels of real devices keep.

    Torch has no flash kernel for meta tensors, and its plain operations keep matrices of scores; its dropout
    keeps a mask as wide as the input.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _Flash.apply(*args[:3])
        if func is torch.nn.functional.dropout and _share(*args, **(kwargs or {})):
            return _Dropout.apply(args[0])
        return func(*args, **(kwargs or {}))


def _share(_: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> float:
    """Return the share of elements that a call of `dropout` drops."""
    return p if training else 0.0


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(torch.empty_like(given, dtype=torch.bool))
        return torch.empty_like(given)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(grads[0])


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        # Shaped [batch, heads, queries, width] but stored by query, as all kernels do.
        batch, heads, queries, _ = query.shape
        out = query.new_empty(batch, queries, heads, value.size(-1)).transpose(1, 2)
        log_sum_exp = query.new_empty(batch, heads, queries, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, log_sum_exp)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
