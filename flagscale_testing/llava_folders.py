"""Folders of small random models with pictures: saved by transformers, converted, trained, converted back.

Used by the tests and, for the table in docs/multimodal.md, by `benchmarks/vision_conversions.py`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from flagscale.formats import option_of
from flagscale.run.checkpoints import RELEASE
from flagscale_testing.conversion import tensors_of
from flagscale_testing.llava_models import LlavaModel, small_vision
from flagscale_testing.pictures import IMAGE, VIDEO, write_tokenizer
from flagscale_testing.ranks.forked import Curve, Run, run_all
from flagscale_testing.ranks.layouts import PP2, TP2
from megatron.flagscale.convert.convert import TASK, convert
from megatron.flagscale.convert.families.llava import usual_name
from megatron.flagscale.convert.logits import verify_logits

MODELS = {
    "LLaVA: CLIP, Llama": LlavaModel(small_vision("clip", False), "Llama"),
    "LLaVA: SigLIP, Qwen2": LlavaModel(small_vision("siglip", False), "Qwen2"),
    "OneVision: SigLIP, Qwen2, tied": LlavaModel(small_vision("siglip", True, layers=2), "Qwen2", tied=True),
    "OneVision: SigLIP, Qwen3": LlavaModel(small_vision("siglip", True, side=45), "Qwen3"),
    "OneVision: CLIP, Llama": LlavaModel(small_vision("clip", True, patch_size=10), "Llama"),
}
"""A model by its form, its tower and its language model; sides are no multiples of a patch."""


def write_folder(name: str, folder: Path, **keys: Any) -> Any:
    """Write one of `MODELS` with its tokenizer, and return it; `keys` replace those of its configuration."""
    from transformers import AutoTokenizer

    model = MODELS[name].of_transformers()
    write_tokenizer(folder)
    ids = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids([IMAGE, VIDEO])
    # An odd number of rows, more than there are tokens.
    model.resize_token_embeddings(ids[1] + 6, mean_resizing=False)
    model.config.image_token_index = ids[0]
    if MODELS[name].vision.tiling:
        model.config.video_token_index = ids[1]
    for key, value in keys.items():
        setattr(model.config, key, value)
    model.save_pretrained(folder)
    return model


def same_model(one: Path, other: Path) -> bool:
    """Return whether two folders hold the same tensors, bit for bit, by their usual names.

    The norm after the tower's last layer may differ: no model computes it, and no checkpoint holds it.
    """
    tensors = [
        {usual_name(name): tensor for name, tensor in tensors_of(folder).items()} for folder in (one, other)
    ]
    first, second = tensors
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and (torch.equal(first[name], second[name]) or ".post_layernorm." in name)
        for name in first
    )


@dataclass(frozen=True)
class Outcome:
    """The results of one model.

    `round_trip`: Hugging Face -> Megatron -> Hugging Face is bitwise equal; `trained`: it still is with a
    training in between that loads the model, does one step at learning rate 0, and saves. `torch`: the
    model of a training that begins with random weights is the same, whether saved as `torch_dist` or in
    Megatron's `torch` format. `logits` is the largest difference between the logits of Megatron and
    transformers, relative to the largest one.
    """

    round_trip: bool
    logits: float
    trained: bool
    torch: bool
    error: str = ""


def run_chain(names: Iterable[str], folder: Path) -> dict[str, Outcome]:
    """Convert the named models, train them in the layout TP2 PP2, and convert them back."""
    names, runs = [*names], []
    for name in names:
        where = folder / name
        write_folder(name, where / "hf")
        _name_placeholders_by_ids(where / "hf")
        convert(where / "hf", where / "megatron")
        loading = ("--load", str(where / "megatron"))
        for one, own in (("trained", loading), ("drawn", ()), ("torch", ("--ckpt-format", "torch"))):
            argv = (*_training(where), *own, "--save", str(where / one))
            runs.append(Run(f"{name}: {one}", 4, argv, "flagscale_testing.ranks.pictures:train"))
    curves = run_all(runs, folder / "runs")
    return {name: _outcome(name, folder / name, curves) for name in names}


def _name_placeholders_by_ids(folder: Path) -> None:
    """Call the placeholders what they are called in drawn samples, which have no tokenizer."""
    config = json.loads((folder / "config.json").read_text())
    for path in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        text = path.read_text()
        for token, kind in ((IMAGE, "image"), (VIDEO, "video")):
            text = text.replace(token, str(config.get(f"{kind}_token_index", 260)))
        path.write_text(text)


def _training(where: Path) -> tuple[str, ...]:
    task = yaml.safe_load((where / "megatron" / TASK).read_text())
    given = [(option_of(name), value) for name, value in task.items()]
    tokenizer = ("--tokenizer-type", "--tokenizer-model", "--padded-vocab-size")
    options = [(name, value) for name, value in given if name not in tokenizer]
    # Two ranks cannot share an odd number of rows.
    steps = f"{TP2} {PP2} --make-vocab-size-divisible-by 1 --seq-length 1024 --micro-batch-size 1"
    return (
        *(part for name, value in options for part in ([name] if value is True else [name, str(value)])),
        *shlex.split(f"{steps} --global-batch-size 2 --train-iters 1 --lr 0 --lr-decay-style constant"),
        *shlex.split("--log-interval 1 --eval-iters 0 --tokenizer-type NullTokenizer --save-interval 1"),
    )


def _outcome(name: str, where: Path, curves: Mapping[str, Curve]) -> Outcome:
    runs = ("trained", "drawn", "torch")
    if error := "".join(curves[f"{name}: {one}"].error for one in runs):
        return Outcome(False, float("inf"), False, False, error)
    made = convert(where / "megatron", where / "back")
    trained, drawn, by_rank = (where / f"after {one}" for one in runs)
    for one in runs:
        convert(where / one, where / f"after {one}", tokenizer=where / "hf")
    return Outcome(
        round_trip=same_model(where / "hf", where / "back"),
        logits=verify_logits(where / "hf", where / "megatron" / RELEASE, made.model),
        trained=same_model(where / "hf", trained),
        torch=same_model(drawn, by_rank),
    )
