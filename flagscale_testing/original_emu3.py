"""Folders of Emu3 as BAAI publishes them, tiny and random, with the model whose weights they hold."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiktoken
import torch
from safetensors.torch import save_file

# From BAAI's `tokenization_emu3.py`, as the tokens' names below.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CODES = 16
_PLACES = {"<|image token|>": 0, "<|image start|>": 1, "<|image end|>": 2}
# "tzx" is built from no other tokens, so it appears only where it is a piece of text of its own.
_MERGED = (
    "th",
    "he",
    "in",
    "the",
    " the",
    "ing",
    " a",
    "12",
    "123",
    "\n\n",
    "  ",
    "'s",
    "né",
    "ré",
    "tzx",
    ". A",
)


@dataclass(frozen=True)
class Original:
    """Folders as BAAI publishes them, the model whose weights they hold, and BAAI's tokenizer."""

    load: Path
    tower: Path
    model: Any
    encoding: tiktoken.Encoding
    special: dict[str, int]


def _ranks() -> dict[bytes, int]:
    tokens = [bytes([byte]) for byte in range(256)]
    return {token: number for number, token in enumerate([*tokens, *(text.encode() for text in _MERGED)])}


def _special_tokens(first: int) -> dict[str, int]:
    fixed = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))]
    tokens = [*fixed, *_PLACES, *(f"<|visual token {code:06d}|>" for code in range(CODES))]
    return {token: first + number for number, token in enumerate(tokens)}


def _original_name(name: str) -> str:
    """Return BAAI's name of a tensor in the state of transformers' model."""
    if name.startswith("model.text_model."):
        return "model." + name.removeprefix("model.text_model.")
    if not name.startswith("model.vqmodel."):
        return name
    parts = name.removeprefix("model.vqmodel.").split(".")
    names = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "proj_out", "middle_block": "mid"}
    parts = [names.get(part, part) for part in parts if part not in ("down_block", "up_block")]
    if "attn_norm" in parts:
        at = parts.index("attn_norm")
        parts[at : at + 1] = ["attn_1", "norm"]
    if "attn_norms" in parts:
        at = parts.index("attn_norms")
        parts[at : at + 2] = ["attn", parts[at + 1], "norm"]
    return ".".join(parts)


def make_original(root: Path) -> Original:
    """Make the folders Emu3-Gen, with the weights in three files, and Emu3-VisionTokenizer."""
    load, tower = root / "Emu3-Gen", root / "Emu3-VisionTokenizer"
    load.mkdir()
    tower.mkdir()
    tokens = _ranks()
    special = _special_tokens(len(tokens))
    config = {
        "architectures": ["Emu3ForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_emu3.Emu3ForCausalLM"},
        "model_type": "Emu3",
        "vocab_size": len(tokens) + len(special),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,  # vLLM on CPU computes heads of 32 and more
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "rope_theta": 20000.0,
        "rms_norm_eps": 1e-4,
        "attention_dropout": 0.0,
        "image_area": 4096,
        "pad_token_id": special["<|endoftext|>"],
        "bos_token_id": special["<|extra_203|>"],
        "eos_token_id": special["<|extra_204|>"],
        "img_token_id": special["<|image token|>"],
        "boi_token_id": special["<|image start|>"],
        "eoi_token_id": special["<|image end|>"],
        "eol_token_id": special["<|extra_200|>"],
        "eof_token_id": special["<|extra_201|>"],
        "torch_dtype": "float32",
    }
    vision = {
        "architectures": ["Emu3VisionVQModel"],
        "model_type": "Emu3VisionVQ",
        "codebook_size": CODES,
        "z_channels": 3,
        "embed_dim": 3,
        "ch": 32,
        "ch_mult": [1, 1, 2, 2],
        "attn_resolutions": [3, 2],
    }
    pictures = {"image_processor_type": "Emu3VisionVQImageProcessor", "min_pixels": 1024, "max_pixels": 4096}
    write_json(load / "config.json", config)
    write_json(tower / "config.json", vision)
    write_json(tower / "preprocessor_config.json", pictures)
    write_json(load / "generation_config.json", {"eos_token_id": special["<|extra_204|>"], "top_k": 2048})
    lines = [base64.b64encode(token) + b" %d\n" % number for token, number in tokens.items()]
    (load / "emu3.tiktoken").write_bytes(b"".join(lines))
    (load / "emu3_vision_tokens.txt").write_text("\n".join([*special][208:]) + "\n")
    model = _model(config, vision, special)
    state = {_original_name(name): tensor for name, tensor in model.state_dict().items()}
    text = {name: tensor for name, tensor in state.items() if name.startswith(("model.", "lm_head."))}
    for name, tensor in state.items():  # convolutions of one pixel
        if re.search(r"\.(q|k|v|proj_out)\.weight$", name) and name not in text:
            state[name] = tensor[:, :, None, None]
    rest = {name: tensor.contiguous() for name, tensor in state.items() if name not in text}
    save_file(rest, tower / "model.safetensors")
    parts = [dict([*text.items()][number::3]) for number in range(3)]
    files = [f"model-{number + 1:05d}-of-00003.safetensors" for number in range(3)]
    for file, part in zip(files, parts, strict=True):
        save_file(part, load / file)
    weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    write_json(load / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    encoding = tiktoken.Encoding("Emu3", pat_str=_PATTERN, mergeable_ranks=tokens, special_tokens=special)
    return Original(load, tower, model, encoding, special)


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def _model(config: dict[str, Any], vision: dict[str, Any], special: dict[str, int]) -> Any:
    """Return transformers' model of the same sizes; its statistics of batches are not the initial ones."""
    from transformers import Emu3Config, Emu3ForConditionalGeneration

    same = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "attention_dropout"),
    )
    text = {name: config[name] for name in (*same, "pad_token_id", "bos_token_id", "eos_token_id")}
    tower = {
        "codebook_size": CODES,
        "latent_channels": 3,
        "embed_dim": 3,
        "base_channels": 32,
        "channel_multiplier": vision["ch_mult"],
        "attn_resolutions": vision["attn_resolutions"],
        "hidden_size": 64,
    }
    torch.manual_seed(0)
    vocabulary = {**special, "<image>": special["<|extra_0|>"]}
    model = Emu3ForConditionalGeneration(
        Emu3Config(
            text_config={**text, "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0}},
            vq_config=tower,
            vocabulary_map=vocabulary,
        )
    ).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
        elif name.endswith("num_batches_tracked"):
            buffer.fill_(7)
    return model
