"""A tiny tokenizer for pictures and text."""

from __future__ import annotations

from pathlib import Path

IMAGE, VIDEO = "<image>", "<video>"
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE, VIDEO)


def write_tokenizer(folder: Path, *, begins: bool = False) -> Path:
    """Write a tokenizer of the 256 bytes and five special tokens, with the chat template `chatml`.

    Its ids below 256 are bytes, in the order of their characters; `<image>` and `<video>` are the last two.
    With `begins`, it puts `<|endoftext|>` before each text, as Llama's puts its begin token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from megatron.flagscale.chat.templates import named_template

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*_SPECIAL])
    if begins:
        begin = _SPECIAL[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A",
            pair=f"{begin} $A $B",
            special_tokens=[(begin, tokenizer.token_to_id(begin))],
        )
    opened = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        **({"bos_token": "<|endoftext|>"} if begins else {}),
        additional_special_tokens=[IMAGE, VIDEO],
        chat_template=named_template("chatml"),
    )
    opened.save_pretrained(folder)
    return folder
