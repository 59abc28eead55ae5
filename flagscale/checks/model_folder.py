"""Check a model folder in Hugging Face's format without loading it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flagscale.checks.picture_folder import is_llava, processor_problem, tensor_problems
from flagscale.checks.stored_tensors import Stored, stored_in
from flagscale.checks.weight_files import LOAD_FORMATS, weights_of
from flagscale.errors import Violation

_MISTRAL_CONFIG = "params.json"
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.gguf")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tekken.json")
OUTPUT, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
UNTIED = ("aquila", "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
"""Model types with these names of tensors that are not tied if `config.json` does not specify it."""


def is_path(model: str) -> bool:
    """Return whether a model or tokenizer is a path on this host; `owner/name` is a name on a model hub."""
    return "://" not in model and (model.startswith((".", "/", "~")) or model.count("/") != 1)


def inputs_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments (by dest) that `folder_violations` reads."""
    names = ("model", "tokenizer", "load_format", "skip_tokenizer_init", "limit_mm_per_prompt")
    return {name: values[name] for name in names if values.get(name) is not None}


def folder_violations(values: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield every violation in the model and tokenizer folders, relative to `cwd`."""
    model, tokenizer = str(values["model"]), str(values.get("tokenizer") or "")
    for name, path in (("model", model), ("tokenizer", tokenizer)):
        if path.startswith("~"):
            yield name, f"{path}: write the full path: the engine does not expand `~`"
            return
    if is_path(model) or os.path.isdir(cwd / model):
        needs_tokenizer = not tokenizer and not values.get("skip_tokenizer_init")
        load_format = str(values.get("load_format") or "auto")
        sees = sees_pictures(values)
        for what in problems(cwd / model, load_format=load_format, tokenizer=needs_tokenizer, pictures=sees):
            yield "model", what
    if tokenizer and is_path(tokenizer) and not os.path.exists(cwd / tokenizer):
        yield "tokenizer", f"{tokenizer}: no such tokenizer"


def mapping_of(value: Any) -> Mapping[str, Any]:
    """Return the mapping that an argument holds as JSON; an empty one if it holds none."""
    try:
        read = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return {}
    return read if isinstance(read, Mapping) else {}


def sees_pictures(values: Mapping[str, Any]) -> bool:
    """Return whether vLLM lets a model read pictures or videos: not if its arguments allow none of them."""
    limits = mapping_of(values.get("limit_mm_per_prompt"))
    return not all(name in limits and limits[name] in (0, {"count": 0}) for name in ("image", "video"))


def problems(
    folder: Path, *, load_format: str = "auto", tokenizer: bool = True, pictures: bool = True
) -> Iterator[str]:
    """Yield why an engine cannot load the folder, or would load other weights than transformers.

    `load_format` is vLLM's argument (`dummy` needs no weights); `tokenizer`: whether it needs one;
    `pictures`: whether it needs what a LLaVA model reads pictures with.
    """
    if not os.path.isdir(folder):
        yield f"{folder}: no such model folder (a name on a model hub has an owner: OWNER/NAME)"
        return
    if not os.path.exists(folder / "config.json") and (checkpoints := _checkpoints_in(folder)):
        what = f"{checkpoints}: Megatron checkpoints, which an engine for inference cannot read; convert them"
        yield f"{what}: tools/checkpoint/convert.py --load {checkpoints} --save FOLDER"
        return
    config: Mapping[str, Any] = {}
    try:
        config = read_config(folder)
    except ValueError as error:
        if not os.path.isfile(folder / _MISTRAL_CONFIG):
            yield str(error)
    if load_format != "dummy":
        yield from _weights(folder, config, load_format)
    if tokenizer and not any(os.path.isfile(folder / name) for name in _TOKENIZERS):
        yield f"{folder}: contains no tokenizer (no {_TOKENIZERS[0]}); name one with `tokenizer`"
    if pictures and is_llava(config) and (what := processor_problem(folder)):
        yield f"{folder}: {what}"


def _checkpoints_in(folder: Path) -> Path | None:
    """Return the folder of Megatron's checkpoints that a folder is or, as a run directory, holds."""
    return next((one for one in (folder, folder / "checkpoints") if any(one.glob("iter_*"))), None)


def read_config(folder: Path) -> Mapping[str, Any]:
    """Return the folder's `config.json`; raises ValueError if it is missing or not a JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder}: not a model folder (no config.json)") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: not a JSON object")
    return config


def has_mistrals_config(folder: Path) -> bool:
    """Return whether vLLM reads the folder by Mistral's `params.json` instead of its `config.json`."""
    return os.path.isfile(folder / _MISTRAL_CONFIG) and any(folder.glob("consolidated*.safetensors"))


def misspelt_architecture(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known architecture that is meant by `name`; "" unless it is of the same family.

    A family with a similar name is another one: Mistral is not Mixtral, and Qwen3Moe is not Qwen3. So is a
    known name with a word after it: LlamaForCausalLMEagle3 is a draft model.
    """
    from difflib import SequenceMatcher  # imported here, because nearly every start has no use for it

    def family(text: str) -> list[str]:
        """Return the letters of the family's name; a doubled one counts once, and their order does not."""
        name = re.split("for(?=[a-z])|lmhead|model$", text.lower())[0]
        return sorted(re.sub(r"(.)\1", r"\1", name))

    def likeness(other: str) -> tuple[float, float]:
        pairs = ((name.lower(), other.lower()), (name, other))
        any_case, same_case = (SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return any_case, same_case

    def has_another_word(other: str) -> bool:
        return name.lower().startswith(other.lower()) and len(name) > len(other) + 2

    alike = [other for other in known if family(other) == family(name) and not has_another_word(other)]
    best = max(alike, key=likeness, default="")
    return f"did you mean `{best}`?" if best and likeness(best)[0] > 0.75 else ""


def _weights(folder: Path, config: Mapping[str, Any], load_format: str) -> Iterator[str]:
    if load_format not in LOAD_FORMATS:
        if not any(next(folder.glob(form), None) for form in ("*.safetensors", *_OTHER_WEIGHTS)):
            yield f"{folder}: contains no weights (no *.safetensors)"
        for file in sorted(folder.glob("*.safetensors")):
            try:
                stored_in(file)
            except ValueError as error:
                yield str(error)
        return
    stored, problems = weights_of(folder, config, load_format)
    yield from problems
    if not problems and is_llava(config):
        yield from (f"{folder}: {what}" for what in tensor_problems(config, stored))
    elif not problems and _lacks_output(config, stored):
        what = f"{folder}: contains no output layer ({OUTPUT}), and `tie_word_embeddings` is not true"
        yield f"{what}: the engine would use arbitrary values; set it to true if the model is tied"


def _lacks_output(config: Mapping[str, Any], stored: Mapping[str, Stored]) -> bool:
    """Return whether a model that generates text lacks its output layer, as far as names can tell."""
    architectures = config.get("architectures")
    is_causal = isinstance(architectures, list) and any(
        str(one).endswith("ForCausalLM") for one in architectures
    )
    is_tied = config.get("tie_word_embeddings", None if config.get("model_type") not in UNTIED else False)
    has_output = any(name.startswith(OUTPUT.removesuffix("weight")) for name in stored)
    return is_causal and is_tied is False and _EMBEDDING in stored and not has_output
