"""Random LoRA adapters, in the format of `peft` and as a training saves them; models with one merged."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

_RANK, _ALPHA = 8, 16
_PROJECTIONS = ("q_proj", "v_proj", "o_proj")


def make_adapter(model: Path, folder: Path, seed: int) -> Path:
    """Save an adapter for the attention of a Llama that changes its answers; return `folder`."""
    import torch
    from safetensors.torch import load_file, save_file

    random = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "r": _RANK,
        "lora_alpha": _ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [*_PROJECTIONS],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        if name.split(".")[-2] in _PROJECTIONS:
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            for part, shape in (("A", (_RANK, weight.shape[1])), ("B", (weight.shape[0], _RANK))):
                tensors[f"{layer}.lora_{part}.weight"] = 0.15 * torch.randn(shape, generator=random)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def merge(model: Path, adapter: Path, folder: Path) -> Path:
    """Save the Llama with the adapter's changes in its weights; return `folder`."""
    from safetensors.torch import load_file
    from transformers import LlamaForCausalLM

    merged = LlamaForCausalLM.from_pretrained(model)
    changes = load_file(adapter / "adapter_model.safetensors")
    for name, weight in merged.named_parameters():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{layer}.lora_A.weight" in changes:
            change = changes[f"{layer}.lora_B.weight"] @ changes[f"{layer}.lora_A.weight"]
            weight.data += _ALPHA / _RANK * change
    merged.save_pretrained(folder)
    return folder


def make_trained(
    base: Path, folder: Path, kinds: Iterable[str], rank: int = 4, alpha: float = 8, dropout: float = 0.0
) -> Path:
    """Save a random adapter of these projections as a training on the checkpoint in `base` does.

    Its tensors have the names that layers give them, and each is saved in two pieces, as two ranks do.
    """
    import torch

    from megatron.flagscale.convert.adapter_conversion import model_in
    from megatron.flagscale.convert.adapters import projections
    from megatron.flagscale.convert.megatron_args import checkpoint_arguments
    from megatron.flagscale.convert.torch_dist_writer import TorchDistWriter

    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    model, wanted, writer = model_in(base), [*kinds], TorchDistWriter(folder)
    for one in projections(model):
        rows, columns = one.shape
        for part, shape in (("a", (rank, columns)), ("b", (rows, rank))) if one.kind in wanted else ():
            tensor = 0.15 * torch.randn(shape, generator=random)
            for half, piece in enumerate(tensor.chunk(2)):
                offsets = [half * len(piece), 0]
                writer.write(f"{one.megatron}.{part}.weight", piece, offsets, shape)
    writer.write("optimizer.state.exp_avg", torch.zeros(3))
    own = {"lora_rank": rank, "lora_alpha": alpha, "lora_dropout": dropout, "lora_targets": wanted}
    writer.finish({**checkpoint_arguments(model), **own, "pretrained_checkpoint": str(base)})
    return folder
