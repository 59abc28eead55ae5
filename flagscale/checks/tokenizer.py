"""What the files of a Hugging Face tokenizer folder say, without opening the tokenizer.

The rules are those of transformers 5: `special_tokens_map.json` and `added_tokens.json` count only if
`tokenizer_config.json` has no `added_tokens_decoder`, and then the map overrides the configuration.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flagscale.errors import UserError

_CONFIG, _MAP, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA = ("extra_special_tokens", "additional_special_tokens")
# Settings that change no id. All others are part of the fingerprint: the class of a tokenizer may read them.
_WITHOUT_EFFECT = {
    "backend", "chat_template", "clean_up_tokenization_spaces", "is_local", "local_files_only",
    "model_input_names", "model_max_length", "name_or_path", "padding_side", "processor_class",
    "special_tokens_map_file", "truncation_side",
}  # fmt: skip


def tokenizer_file(folder: Path) -> Path:
    """Return the folder's `tokenizer.json`; raises UserError if it is missing."""
    path = folder / "tokenizer.json"
    if not os.path.isfile(path):
        raise UserError(
            f"{path}: no such file; a tokenizer is a folder that train_tokenizer.py or transformers wrote"
        )
    return path


def fingerprint(folder: Path) -> str:
    """Return a hash that changes if the tokenizer's own files could yield other ids, wherever the folder is.

    A model's `config.json` in the folder is left out: it changes the class of few families, and the same
    tokenizer is used with and without it. The worker, which opens the tokenizer, compares a sample of ids.
    """
    settings = {name: value for name, value in _settings(folder).items() if name not in _WITHOUT_EFFECT}
    digest = hashlib.sha256(tokenizer_file(folder).read_bytes())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def eos_token(folder: Path) -> str:
    """Return the token that ends a document, as Megatron chooses it; raises UserError if there is none."""
    settings = _settings(folder)
    for name in ("eos_token", "sep_token"):
        if token := _content(settings.get(name)):
            return token
    raise UserError(f"{folder / _CONFIG}: eos_token is missing, which has to end every document; add it")


def tokenizer_class(folder: Path) -> str | None:
    """Return the name of the class that the folder asks for, if it does."""
    return _content(_read(folder / _CONFIG).get("tokenizer_class"))


def vocabulary(folder: Path) -> int | None:
    """Return the number of tokens (the highest id + 1), or None if `tokenizer.json` does not list them.

    Includes the tokens that only the settings name: transformers appends them when it opens the folder. It
    may also append special tokens that only the tokenizer's class knows; these are not included.
    """
    ids = _ids(folder)
    if ids is None:
        return None
    return max(ids.values(), default=-1) + 1 + len(set(_named(_settings(folder))) - ids.keys())


def lacks(folder: Path, tokens: Iterable[str]) -> list[str]:
    """Return which of these are no tokens of the folder's; none if `tokenizer.json` does not list them."""
    ids = _ids(folder)
    known = None if ids is None else ids.keys() | set(_named(_settings(folder)))
    return [] if known is None else [token for token in tokens if token not in known]


def has_chat_template(folder: Path) -> bool:
    """Return whether the folder has a template for conversations."""
    return any(os.path.isfile(folder / name) for name in _TEMPLATES) or bool(
        _read(folder / _CONFIG).get("chat_template")
    )


def _ids(folder: Path) -> dict[str, int] | None:
    """Return the ids that `tokenizer.json` lists; None if it lists none."""
    known = _read(tokenizer_file(folder))
    model = known.get("model")
    listed = model.get("vocab") if isinstance(model, dict) else None
    added = known.get("added_tokens") or []
    try:
        if isinstance(listed, dict):
            ids = {str(token): int(number) for token, number in listed.items()}
        elif isinstance(listed, list):  # Unigram: [[token, score], ...]
            ids = {token: number for number, (token, _) in enumerate(listed)}
        else:
            return None
        return ids | {token["content"]: token["id"] for token in added}
    except (TypeError, ValueError, KeyError):
        return None


def _named(settings: dict[str, Any]) -> Iterator[str]:
    """Yield every token that the settings name."""
    tokens = [value for name, value in settings.items() if name in _NAMED or name.endswith("_token")]
    for name in (*_EXTRA, "added_tokens_decoder"):
        several = settings.get(name)
        tokens += (
            several.values() if isinstance(several, dict) else several if isinstance(several, list) else ()
        )
    tokens += settings.get(_ADDED, ())
    for token in tokens:
        if content := _content(token):
            yield content


def _settings(folder: Path) -> dict[str, Any]:
    """Return the settings that transformers would use; `added_tokens.json` is a value under its name."""
    settings = _read(folder / _CONFIG)
    if "added_tokens_decoder" not in settings:
        settings |= _read(folder / _MAP)
        if added := _read(folder / _ADDED):
            settings[_ADDED] = added
    return settings


def _content(token: Any) -> str | None:
    """Return the text of a token in its short form or its long one (`{"content": "</s>", "lstrip": ...}`)."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _read(path: Path) -> dict[str, Any]:
    """Return the content (empty if there is no such file); raises UserError if it is not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object")
    return content
