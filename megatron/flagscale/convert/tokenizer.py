"""The tokenizer of a model: its files, the true vocabulary size, and the ids of special tokens."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flagscale.errors import Problem, UserError
from flagscale.files import write_atomic
from megatron.flagscale.chat.conversation import ChatTemplate
from megatron.flagscale.chat.templates import text_template_of
from megatron.flagscale.convert.files import read_json
from megatron.flagscale.convert.hf_defaults import generation_defaults

GENERATION = "generation_config.json"
TOKENIZER_FILE = "tokenizer.json"
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
# The files of Hugging Face tokenizers of any kind, and the generation settings stored with them.
_FILES = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    *_TEMPLATES,
    GENERATION,
)
END = "eos_token_id"
_IDS = ("bos_token_id", END, "pad_token_id")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer folder (None if there is none), its number of tokens, and its special ids.

    `generation` holds the settings of `generation_config.json`, including the ids. `vocab` holds the id of
    each token.
    """

    folder: Path | None = None
    size: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    vocab: Mapping[str, int] = field(default_factory=dict, repr=False)
    chat_template: str = ""
    """The template of conversations that replaces the folder's own."""
    added: tuple[str, ...] = ()
    """Special tokens that its copies have besides."""

    @property
    def ids(self) -> dict[str, Any]:
        """The ids of beginning, end and padding under their names in `config.json`; None if missing."""
        return {name: self.generation.get(name) for name in _IDS}

    def copy(self, target: Path) -> None:
        """Write the tokenizer's files with what it gets besides, and nothing else from its folder."""
        if self.folder is None:
            return
        target.mkdir(exist_ok=True)
        for name in _FILES:
            if (self.folder / name).is_file() and not (self.chat_template and name in _TEMPLATES):
                shutil.copyfile(self.folder / name, target / name)
        if self.added:
            with_added(_opened(target), self.added).save_pretrained(target)
        if self.chat_template:
            write_atomic(target / _TEMPLATES[0], self.chat_template)


def write_file(folder: Path) -> None:
    """Write `tokenizer.json` if a tokenizer has none: with it, it encodes the same beside any `config.json`.

    transformers 5.19 opens a `tokenizer.model` beside the configuration of a model with pictures without
    its class, and loses blanks and line breaks.
    """
    if is_tokenizer(folder) and not (folder / TOKENIZER_FILE).is_file():
        opened = _opened(folder)
        if opened.is_fast:
            opened.backend_tokenizer.save(str(folder / TOKENIZER_FILE))


def is_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds a Hugging Face tokenizer."""
    return any((folder / name).is_file() for name in (TOKENIZER_FILE, "tokenizer.model", "vocab.json"))


def open_tokenizer(folder: Path) -> Tokenizer:
    """Open a folder with `AutoTokenizer`, offline and without its code; raise `UserError` if that fails."""
    if not is_tokenizer(folder):
        raise UserError(f"{folder}: no tokenizer found (tokenizer.json, tokenizer.model or vocab.json)")
    try:
        opened = _opened(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        if "trust_remote_code" in str(error):
            what = "the tokenizer needs code from its folder, which is never run"
            hint = "use --tokenizer with a folder that has a tokenizer.json"
            raise UserError([Problem(what, str(folder), hint)]) from error
        why = f"its files lack {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{folder}: the tokenizer cannot be opened: {why}") from error
    vocab = opened.get_vocab()
    if vocab.keys() <= {*opened.all_special_tokens}:  # for instance if tokenizer.model is damaged
        raise UserError(f"{folder}: the tokenizer has only special tokens; its files are damaged or missing")
    ids = {name: getattr(opened, name) for name in _IDS}
    # A model may have more end tokens than its tokenizer specifies.
    stored = read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    return Tokenizer(folder, len(opened), {**ids, **stored}, vocab)


def _opened(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def with_template(tokenizer: Tokenizer, source: str) -> Tokenizer:
    """Return a tokenizer whose copies have this chat template (a name or a file), and end text as it does.

    Raises:
        UserError: there is no tokenizer, or the template cannot be used.
    """
    if tokenizer.folder is None:
        what = "a chat template is written into the model's tokenizer, but it has none"
        raise UserError([Problem(what, "--chat-template", "add --tokenizer FOLDER")])
    opened = _opened(tokenizer.folder)
    template = text_template_of(opened, source, option="--chat-template")
    return with_end(replace(tokenizer, chat_template=template), ChatTemplate(template, opened).end_token())


def with_tokens(tokenizer: Tokenizer, tokens: Iterable[str]) -> Tokenizer:
    """Return a tokenizer to which these special tokens are added, unless it has them."""
    added = tuple(token for token in tokens if token not in tokenizer.vocab)
    if not added or tokenizer.folder is None:
        return tokenizer
    opened = with_added(_opened(tokenizer.folder), added)
    return replace(tokenizer, size=len(opened), vocab=opened.get_vocab(), added=added)


def with_added(opened: Any, tokens: Iterable[str]) -> Any:
    """Return a tokenizer of transformers with further special tokens, which text never splits."""
    from transformers import AddedToken

    opened.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True
    )
    return opened


def with_end(tokenizer: Tokenizer, token: int | None) -> Tokenizer:
    """Return a tokenizer with a further token that ends generated text; None adds nothing."""
    stored = tokenizer.generation.get(END)
    ends = stored if isinstance(stored, list) else [] if stored is None else [stored]
    if token is None or token in ends:
        return tokenizer
    found = [*ends, token]
    return replace(tokenizer, generation={**tokenizer.generation, END: found if len(found) > 1 else token})


def stored_tokenizer(folders: Iterable[Path]) -> Tokenizer | None:
    """Return the first tokenizer in these folders, or the ids stored there by a conversion without one."""
    for folder in folders:
        if is_tokenizer(folder):
            return open_tokenizer(folder)
        if (folder / GENERATION).is_file():
            return Tokenizer(generation=read_json(folder / GENERATION))
    return None


def settings_left_out(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a notice if a `config.json` without `generation_config.json` beside it says how to generate."""
    usual = {**generation_defaults(), "use_cache": config.get("use_cache")}
    names = sorted(name for name in usual if config.get(name) not in (None, usual[name]))
    if not names:
        return ()
    what = (
        f"{', '.join(names)} of config.json are left out: for generating text, transformers reads them there"
    )
    return (f"{what}, but vLLM only in {GENERATION}; write them to the new one if you want them",)


def check_tokens(tokenizer: Tokenizer | None, vocab: int) -> tuple[str, ...]:
    """Return a notice if there is no tokenizer; raise `UserError` if it has more than `vocab` tokens."""
    if tokenizer is None or tokenizer.folder is None:
        return ("no tokenizer is included; add one with --tokenizer FOLDER",)
    if tokenizer.size is not None and tokenizer.size > vocab:
        what = f"{tokenizer.size} tokens, but the model has only {vocab}"
        hint = (
            "remove the added ones from a copy of it and name that with --tokenizer, or enlarge the embedding"
        )
        raise UserError([Problem(what, str(tokenizer.folder), hint)])
    return ()
