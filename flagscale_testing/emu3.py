"""A small Emu3 with random weights: a complete model folder in the form of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flagscale.checks import emu3_vocabulary as names

CODES = 64
"""Size of the codebook: the number of tokens that stand for 8 x 8 pixels of a picture."""
IMAGE_AREA = 48 * 64
"""Pixels of a picture that is asked for by its ratio; a ratio of 1:1 has 7 x 7 codes."""
SPECIAL = (
    names.PAD,
    names.BEGIN_OF_TEXT,
    names.END_OF_TEXT,
    names.IMAGE,
    names.BEGIN_OF_IMAGE,
    names.END_OF_IMAGE,
    names.BEGIN_OF_CODES,
    names.END_OF_LINE,
    names.END_OF_FRAME,
)
_TEXTS = (
    "a portrait of young girl. masterpiece, film grained, best quality.",
    "lowres, bad anatomy, bad hands, text, error, missing fingers, worst quality, low quality, blurry.",
    "You are a helpful assistant. USER: Please describe the image. ASSISTANT: a shiba inu in the snow",
)


def make_emu3(
    folder: Path, *, seed: int = 0, layers: int = 2, hidden: int = 128, positions: int = 1024
) -> None:
    """Write the model (float32, about 3 MB), its tokenizer, processor and chat template into the folder.

    Args:
        positions: of the language model, for the prompt and the picture.
    """
    import torch
    from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3Processor, GenerationConfig
    from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor

    tokenizer = _tokenizer()
    ids = tokenizer.get_vocab()
    ends = {
        "pad_token_id": ids[names.PAD],
        "bos_token_id": ids[names.BEGIN_OF_TEXT],
        "eos_token_id": ids[names.END_OF_TEXT],
    }
    config = Emu3Config(
        vocabulary_map=ids,
        text_config={
            "vocab_size": len(ids),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": positions,
            "attention_dropout": 0.0,
            "initializer_range": 0.2,  # with less, a random model repeats one token
            **ends,
        },
        vq_config={
            "codebook_size": CODES,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 2, 2],
            "num_res_blocks": 1,
            "hidden_size": 64,
        },
    )
    torch.manual_seed(seed)
    model = Emu3ForConditionalGeneration(config).float().eval()
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(folder)
    pictures = Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64, image_area=IMAGE_AREA)
    Emu3Processor(pictures, tokenizer, chat_template=names.CHAT_TEMPLATE).save_pretrained(folder)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_TEXTS * 5, trainer)
    tokenizer.add_special_tokens([*SPECIAL, *(names.CODE.format(code) for code in range(CODES))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=names.PAD,
        bos_token=names.BEGIN_OF_TEXT,
        eos_token=names.END_OF_TEXT,
        extra_special_tokens={
            "image_token": names.IMAGE,
            "boi_token": names.BEGIN_OF_IMAGE,
            "eoi_token": names.END_OF_IMAGE,
            "image_wrapper_token": names.BEGIN_OF_CODES,
            "eof_token": names.END_OF_FRAME,
        },
    )
