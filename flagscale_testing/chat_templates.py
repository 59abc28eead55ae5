"""Chat templates of published models, read from installed packages, and a tokenizer with their tokens."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<|header_start|>", "<|header_end|>", "<|eot|>", "<|python_start|>", "<|python_end|>"),
    *("<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>"),
    *("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CALLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
)
_MULTIMODAL = "megatron/core/tokenizers/vision/libraries/multimodal_tokenizer.py"
_CONSTANTS = {
    "Llama 3.1": (_MULTIMODAL, "llama3p1_chat_template"),
    "Qwen 2": (_MULTIMODAL, "qwen2p0_custom_template"),
    "Nemotron Nano 2": (
        "megatron/core/tokenizers/text/libraries/sft_tokenizer.py",
        "nemotron_nano_v2_custom_template",
    ),
    "Llama 4": ("transformers/models/llama4/processing_llama4.py", "chat_template"),
}
_FILES = {"Qwen 3": "vllm/transformers_utils/chat_templates/template_minicpmv45.jinja"}
"""MiniCPM-V 4.5 answers with Qwen 3 and has its template, with thoughts off unless asked for."""


def published_templates() -> dict[str, str]:
    """Return six templates by the name of the model."""
    from mistral_common.integrations.chat_templates.template_generator import (
        TemplateConfig,
        build_chat_template,
    )
    from mistral_common.tokens.tokenizers.base import TokenizerVersion

    return {
        **{name: _constant(*place) for name, place in _CONSTANTS.items()},
        **{name: _file(path).read_text("utf-8") for name, path in _FILES.items()},
        "Mistral 7": build_chat_template(
            TemplateConfig(version=TokenizerVersion.v7, use_special_token_variables=True)
        ),
    }


def write_chat_tokenizer(folder: Path, chat_template: str | None) -> Path:
    """Write a byte-level BPE tokenizer with some merges and the special tokens of these templates."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(_SPECIAL) + 60,
        special_tokens=[*_SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["Hello there. The answer is: yes!\n\nassistant user system\n"] * 9, trainer
    )
    opened = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )
    opened.save_pretrained(folder)
    return folder


def _file(path: str) -> Path:
    return Path(sysconfig.get_paths()["purelib"]) / path


def _constant(path: str, name: str) -> str:
    """Return a text that a module assigns, without importing the module."""
    tree = ast.parse(_file(path).read_text("utf-8"))
    values = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [getattr(one, "id", "") for one in node.targets] == [name]
    )
    return str(ast.literal_eval(next(values)))
