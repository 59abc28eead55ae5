"""Random LoRA adapters in the format of `peft`, and models into which one is merged."""

from __future__ import annotations

import json
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
