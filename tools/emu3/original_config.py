"""What the `config.json` files of BAAI's Emu3 say, in the terms of transformers' Emu3. Standard library only.

Keys and defaults are those of `configuration_emu3.py` and `configuration_emu3visionvq.py` in BAAI's
repository (github.com/baaivision/Emu3, commit f6ea9aa).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagscale.checks import emu3_vocabulary as names
from flagscale.checks.emu3 import AREA, FACTOR
from flagscale.checks.emu3_folder import is_emu3
from flagscale.errors import Problem, UserError, short
from megatron.flagscale.convert.files import read_json
from megatron.flagscale.convert.json_values import is_positive, is_size

CONFIG = "config.json"
_SIZES = {
    "vocab_size": 184622,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 9216,
}
_OTHERS = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "use_cache": True,
    "attention_dropout": 0.1,
}
_TOKENS = {
    "pad_token_id": (names.PAD, 151643),
    "bos_token_id": (names.BEGIN_OF_TEXT, 151849),
    "eos_token_id": (names.END_OF_TEXT, 151850),
    "img_token_id": (names.BEGIN_OF_CODES, 151851),
    "boi_token_id": (names.BEGIN_OF_IMAGE, 151852),
    "eoi_token_id": (names.END_OF_IMAGE, 151853),
    "eol_token_id": (names.END_OF_LINE, 151846),
    "eof_token_id": (names.END_OF_FRAME, 151847),
}
"""Key -> the token that the processor of BAAI uses for it, and the default of the key."""
_ENDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_TOWER_SIZES = {
    "codebook_size": ("codebook_size", 32768),
    "embed_dim": ("embed_dim", 4),
    "z_channels": ("latent_channels", 4),
    "in_channels": ("in_channels", 3),
    "out_channels": ("out_channels", 3),
    "temporal_downsample_factor": ("temporal_downsample_factor", 4),
    "ch": ("base_channels", 256),
    "num_res_blocks": ("num_res_blocks", 2),
}
"""Key -> transformers' name of it, and its default."""
_LEVELS, _ATTENTION = (1, 2, 2, 4), (3,)
_WITHOUT_EFFECT = {
    *(
        "architectures",
        "auto_map",
        "model_type",
        "transformers_version",
        "_name_or_path",
        "torch_dtype",
        "dtype",
    ),
    "pretraining_tp",  # the order in which BAAI's code multiplies, not the result
    "dropout",  # only in trainings
    "_attn_implementation",
}


@dataclass(frozen=True)
class Original:
    """The configuration of both folders.

    `text` and `tower` are transformers' `text_config` and `vq_config`; `ids` are the ids that the language
    model gives to tokens; `image_area` is in pixels; `dtype` is "" if not recorded.
    """

    text: Mapping[str, Any]
    tower: Mapping[str, Any]
    ids: Mapping[str, int]
    image_area: int
    dtype: str
    notices: tuple[str, ...]


def read_original(folder: Path, tower: Path) -> Original:
    """Return the configuration of a language model's folder and of its vision tokenizer's.

    Raises:
        UserError: they are other models, or use what cannot be converted; lists everything.
    """
    problems = [
        *_misplaced(folder, "--load", "Emu3", "a language model of Emu3 (Emu3-Gen, Emu3-Chat, Emu3-Stage1)"),
        *_misplaced(tower, "--tower", "Emu3VisionVQ", "its vision tokenizer (Emu3-VisionTokenizer)"),
    ]
    if problems:
        raise UserError(problems)
    config, tower_config = read_json(folder / CONFIG), read_json(tower / CONFIG)
    text = _read_text(config, str(folder / CONFIG), problems)
    vision = _read_tower(tower_config, str(tower / CONFIG), problems)
    ids = {token: config.get(key, usual) for key, (token, usual) in _TOKENS.items()}
    area = config.get("image_area", AREA)
    if not is_size(area):
        problems.append(Problem(f"`image_area` is {short(area)}; use pixels", str(folder / CONFIG)))
    if problems:
        raise UserError(problems)
    dtype = config.get("dtype") or config.get("torch_dtype") or ""
    known = {*_SIZES, *_OTHERS, *_TOKENS, "rope_theta", "rope_scaling", "tie_word_embeddings", "image_area"}
    notices = (
        *_unread(config, known, folder),
        *_unread(tower_config, {*_TOWER_SIZES, "ch_mult", "attn_resolutions", "double_z"}, tower),
    )
    return Original(text, vision, ids, area, str(dtype), notices)


def _misplaced(folder: Path, option: str, model_type: str, what: str) -> Iterator[Problem]:
    if not folder.is_dir():
        yield Problem("no such folder", f"{option} {folder}")
        return
    where = f"{option} {folder / CONFIG}"
    try:
        config = read_json(folder / CONFIG)
    except UserError as error:
        yield from error.problems
        return
    found = config.get("model_type")
    if is_emu3(config):
        already = "already in the form of transformers, with the vision tokenizer in it"
        yield Problem(already, where, "use that folder as it is")
    elif found != model_type:
        expected = f"name the folder of {what} as BAAI publishes it, whose `model_type` is {model_type}"
        yield Problem(f"`model_type` is {short(found)}", where, expected)


def _read_text(config: Mapping[str, Any], where: str, problems: list[Problem]) -> dict[str, Any]:
    text = {key: config.get(key, usual) for key, usual in _SIZES.items()}
    if text["num_key_value_heads"] is None:
        text["num_key_value_heads"] = text["num_attention_heads"]
    problems += [
        Problem(f"`{key}` is {short(value)}, not a positive whole number", where)
        for key, value in text.items()
        if not is_size(value)
    ]
    ends = {key: config.get(key, _TOKENS[key][1]) for key in _ENDS}
    theta = config.get("rope_theta", 1_000_000.0)
    if not is_positive(theta):
        problems.append(Problem(f"`rope_theta` is {short(theta)}, not a positive number", where))
    for key, only in (("rope_scaling", None), ("tie_word_embeddings", False)):
        if config.get(key, only) is not only:
            what = f"`{key}` is {short(config[key])}, which no published Emu3 has; only "
            problems.append(Problem(f"{what}{'null' if only is None else 'false'} is supported", where))
    others = {key: config.get(key, usual) for key, usual in _OTHERS.items()}
    rope = {
        "rope_parameters": {"rope_type": "default", "rope_theta": float(theta) if is_positive(theta) else 0}
    }
    return {**text, **others, **ends, **rope}


def _read_tower(config: Mapping[str, Any], where: str, problems: list[Problem]) -> dict[str, Any]:
    sizes = {name: config.get(key, usual) for key, (name, usual) in _TOWER_SIZES.items()}
    levels, attention = config.get("ch_mult", [*_LEVELS]), config.get("attn_resolutions", [*_ATTENTION])
    wrong = [
        f"`{key}` is {short(sizes[name])}, not a positive whole number"
        for key, (name, _) in _TOWER_SIZES.items()
        if not is_size(sizes[name])
    ]
    if not isinstance(levels, list) or 2 ** (len(levels) - 1) != FACTOR or not all(map(is_size, levels)):
        wrong.append(
            f"`ch_mult` is {short(levels)}; use 4 whole numbers, for {FACTOR} x {FACTOR} pixels per code"
        )
    elif not isinstance(attention, list) or not all(
        type(level) is int and level in range(len(levels)) and levels[level] == levels[-1]
        for level in attention
    ):
        what = f"`attn_resolutions` is {short(attention)}; transformers gives attention only"
        wrong.append(f"{what} to levels as wide as the last one (`ch_mult` {levels})")
    if sizes["latent_channels"] != sizes["embed_dim"]:
        channels = f"`z_channels` is {sizes['latent_channels']} and `embed_dim` {sizes['embed_dim']}"
        wrong.append(f"{channels}; only equal ones can be computed")
    if config.get("double_z", False) is not False:
        wrong.append(f"`double_z` is {short(config['double_z'])}; only false can be computed")
    problems += [Problem(what, where) for what in wrong]
    if wrong:
        return {}
    shape = {"channel_multiplier": levels, "attn_resolutions": attention}
    return {**sizes, **shape, "hidden_size": sizes["base_channels"] * levels[-1], "num_attention_heads": 1}


def _unread(config: Mapping[str, Any], known: set[str], folder: Path) -> tuple[str, ...]:
    names = sorted(config.keys() - known - _WITHOUT_EFFECT)
    return (f"{folder / CONFIG}: not read: {', '.join(names)}",) if names else ()
