"""Open the source of a conversion: a model, with its tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flagscale.errors import UserError
from flagscale.run.checkpoints import RELEASE
from megatron.flagscale.convert.checkpoints import find_checkpoint, reader_of
from megatron.flagscale.convert.files import read_json
from megatron.flagscale.convert.hf_pictures import TEXT
from megatron.flagscale.convert.hf_rope import scaling_left_out
from megatron.flagscale.convert.huggingface import CONFIG, HuggingFaceSource
from megatron.flagscale.convert.megatron_model import model_of
from megatron.flagscale.convert.processor import as_trained, vision_beside
from megatron.flagscale.convert.tensors import Source
from megatron.flagscale.convert.tokenizer import (
    GENERATION,
    Tokenizer,
    check_tokens,
    is_tokenizer,
    open_tokenizer,
    settings_left_out,
    stored_tokenizer,
    with_template,
)

TOKENIZER = "tokenizer"
"""The folder of the tokenizer that is stored with a converted checkpoint."""


def open_huggingface(
    load: Path, family: str | None, given: Tokenizer | None
) -> tuple[HuggingFaceSource, Tokenizer, tuple[str, ...]]:
    """Return the model in a Hugging Face folder, its tokenizer (`given`, or its own), and notices."""
    source = HuggingFaceSource(load, family)
    companion = given or (open_tokenizer(load) if is_tokenizer(load) else Tokenizer())
    notices = source.notices + check_tokens(companion, source.model.vocab)
    config = read_json(load / CONFIG)
    if source.model.vision:
        vision = vision_beside(source.model.vision, load, config, companion)
        source.model = replace(source.model, vision=vision)
    stored = read_json(load / GENERATION) if (load / GENERATION).is_file() else {}
    notices += settings_left_out(config) if not stored else ()
    known = {**(config[TEXT] if source.model.vision else {}), **config}
    notices += scaling_left_out(known, source.model.positions)
    if given is None:  # text ends at the model's own ids, not at its tokenizer's
        ids = {name: known[name] for name in companion.ids if known.get(name) is not None}
        companion = replace(companion, generation={**companion.generation, **ids, **stored})
    return source, companion, notices


def open_megatron(
    load: Path,
    family: str | None,
    given: Tokenizer | None,
    vocab_size: int | None,
    iteration: int | None,
    chat_template: str | None,
) -> tuple[Source, Tokenizer, tuple[str, ...]]:
    """Return the model in a folder of Megatron checkpoints, its tokenizer, and notices.

    `chat_template` replaces that of the training, as which a tokenizer's own template counts.
    """
    checkpoint = find_checkpoint(load, iteration)
    reader = reader_of(checkpoint)
    args = reader.read_arguments(checkpoint)
    named = [Path(args["tokenizer_model"])] if args.get("tokenizer_model") else []
    # The one next to a converted checkpoint, or else the one used in training, if it still exists.
    companion = given or stored_tokenizer([load / TOKENIZER, checkpoint.parent / TOKENIZER, *named])
    tokens = vocab_size or args.get("vocab_size") or (companion.size if companion else None)
    rows = reader.stored_rows(checkpoint)
    if tokens is not None and tokens > rows:
        raise UserError(f"{checkpoint}: {tokens} tokens, but the embedding has only {rows} rows")
    model = model_of(args, tokens or rows, str(checkpoint), family)
    notices = check_tokens(companion, model.vocab)
    if chat_template and not model.vision:
        companion = with_template(companion or Tokenizer(), chat_template)
    if model.vision and companion and companion.folder:
        chosen = chat_template or args.get("chat_template")
        # A model that was only converted ends text where its own folder says.
        ends = bool(chosen) or checkpoint.name != RELEASE
        companion = as_trained(model.vision, companion, chosen, ends)
    if tokens is None:
        notices += (f"the true number of tokens is unknown: all {rows} rows are kept; set --vocab-size",)
    return reader.open_source(checkpoint, model), companion or Tokenizer(), notices
