"""Checkpoints in Megatron's older `torch` format are converted bit for bit, whichever layout saved them."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from flagscale.errors import UserError
from flagscale.run.checkpoints import TRACKER
from flagscale.run.manifest import MANIFEST, RANK_FILE
from flagscale_testing.conversion import CASES, EP2, LENGTH, same, task_argv, tensors_of
from flagscale_testing.ranks.forked import Run, run_all
from flagscale_testing.ranks.layouts import MODELS, PP2, TP2
from megatron.flagscale.convert.convert import convert

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # one run of all ranks serves every test

INTERLEAVED = f"{PP2} --num-virtual-stages-per-pipeline-rank 2"
SPLIT = "--sequence-parallel --expert-tensor-parallel-size"
LAYOUTS = {
    "one rank": ("Llama 2", 1, ""),
    "TP2": ("Llama 2", 2, TP2),
    "PP2": ("Llama 2", 2, PP2),
    "TP2 PP2": ("Llama 2", 4, f"{TP2} {PP2}"),
    "interleaved": ("Llama 2", 2, INTERLEAVED),
    "tied, TP2 PP2": ("Llama 3.2, tied", 4, f"{TP2} {PP2}"),
    "biases, TP2": ("Qwen2, 2.5", 2, TP2),
    "EP2": ("Mixtral", 2, EP2),
    "EP2, experts in TP2": ("Mixtral", 4, f"{TP2} {EP2} {SPLIT} 2"),
    "TP2 PP2 EP2, whole experts": ("Mixtral", 4, f"{TP2} {PP2} {EP2} {SPLIT} 1"),
    "all biases, TP2": ("Llama, biases", 2, TP2),
    "stacked experts, TP2 EP2": ("gpt-oss", 2, f"{TP2} {EP2} {SPLIT} 1"),
    "latent attention, TP2": ("DeepSeek-V2-Lite", 2, f"{TP2} {SPLIT} 1"),
    "multi-token prediction, TP2 PP2 EP2": ("DeepSeek-V3, MTP", 4, f"{TP2} {PP2} {EP2} {SPLIT} 1"),
}
TRAINED = {"llama": ("llama", 4, f"{TP2} {PP2}"), "moe": ("moe", 2, EP2)}
SAVED = f"iter_{0:07d}"


@pytest.fixture(scope="module")
def saved(models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let the engine load each model in its layout, and save it in the `torch` format; also train some."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    sizes = f"--seq-length {LENGTH} --micro-batch-size 2 --global-batch-size 4 --train-iters 1 --lr 0"
    runs = []
    for name, (model, ranks, layout) in LAYOUTS.items():
        source = models(model) / "megatron"
        argv = (*task_argv(source, CASES[model]), *shlex.split(f"{layout} {sizes} --mock-data"))
        to = ("--ckpt-convert-format", "torch", "--ckpt-convert-save", str(folder / name))
        argv = (*argv, "--tokenizer-type", "NullTokenizer", "--load", str(source), *to)
        runs.append(Run(name, ranks, argv))
    for name, (model, ranks, layout) in TRAINED.items():
        for format in ("torch", "torch_dist"):
            where = ("--save", str(folder / f"{name} trained" / format), "--save-interval", "1")
            steps = shlex.split(f"{layout} --train-iters 1 --ckpt-format {format}")
            runs.append(Run(f"{name} {format}", ranks, (*MODELS[model], *steps, *where)))
    run_all(runs, folder / "runs")
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_ranks_of_every_layout_are_joined(
    name: str, saved: Path, models: Callable[[str], Path], tmp_path: Path
) -> None:
    convert(saved / name / "torch", tmp_path / "hf")
    assert same(tmp_path / "hf", models(LAYOUTS[name][0]) / "hf")


@pytest.mark.parametrize("name", TRAINED)
def test_both_formats_of_a_training_give_the_same_model(name: str, saved: Path, tmp_path: Path) -> None:
    for format in ("torch", "torch_dist"):
        convert(saved / f"{name} trained" / format, tmp_path / format)
    assert len(tensors_of(tmp_path / "torch")) > 30
    assert same(tmp_path / "torch", tmp_path / "torch_dist")


def test_it_can_be_rewritten_as_torch_dist(
    saved: Path, models: Callable[[str], Path], tmp_path: Path
) -> None:
    convert(saved / "TP2" / "torch", tmp_path / "dist", to="megatron")
    convert(tmp_path / "dist", tmp_path / "hf")
    assert same(tmp_path / "hf", models("Llama 2") / "hf")


@pytest.fixture
def changed(saved: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies a checkpoint and changes what every rank saved; no manifest covers it."""

    def copy(name: str, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
        folder = Path(shutil.copytree(saved / name / "torch", tmp_path / "copy"))
        (folder / SAVED / MANIFEST).unlink()
        for file in (folder / SAVED).glob(f"*/{RANK_FILE}") if change else ():
            content = torch.load(file, weights_only=False)
            change(content)  # type: ignore[misc]
            torch.save(content, file)
        return folder

    return copy


def rename(content: dict[str, Any], *pairs: tuple[str, str]) -> None:
    for old, new in pairs:
        content["model"] = {name.replace(old, new): value for name, value in content["model"].items()}


def fused_norms(content: dict[str, Any]) -> None:
    """Name the norms as TransformerEngine's layers do, and add its extra states."""
    norms = (".input_layernorm.", ".self_attention.linear_qkv.layer_norm_")
    rename(content, norms, (".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_"))
    content["model"]["decoder.layers.0.self_attention.core_attention._extra_state"] = torch.zeros(8)


def grouped_experts(content: dict[str, Any]) -> None:
    """Name the experts as TransformerEngine's grouped layers do."""
    for number in range(2):
        for layer in ("linear_fc1", "linear_fc2"):
            rename(content, (f".local_experts.{number}.{layer}.weight", f".{layer}.weight{number}"))


def joined_experts(content: dict[str, Any]) -> None:
    """Store the experts as older Megatron-core's `GroupedMLP` does: `[hidden, experts * ffn]` and reverse."""
    model = content["model"]
    for layer in range(4):
        prefix = f"decoder.layers.{layer}.mlp.experts"
        names = [f"{prefix}.local_experts.{number}.linear_fc" for number in range(2)]
        first = torch.stack([model.pop(f"{name}1.weight").t().contiguous() for name in names])
        second = torch.stack([model.pop(f"{name}2.weight").t().contiguous() for name in names])
        model[f"{prefix}.weight1"] = first.view(first.shape[1], -1)
        model[f"{prefix}.weight2"] = second.view(-1, second.shape[2])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("TP2", fused_norms),
        ("EP2", fused_norms),
        ("EP2", grouped_experts),
        ("EP2", joined_experts),
        ("EP2, experts in TP2", joined_experts),
    ],
)
def test_other_layers_name_the_same_tensors(
    name: str,
    change: Callable[[dict[str, Any]], None],
    changed: Callable[..., Path],
    models: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    convert(changed(name, change), tmp_path / "hf")
    assert same(tmp_path / "hf", models(LAYOUTS[name][0]) / "hf")


def test_a_checkpoint_of_an_older_release_is_read(
    changed: Callable[..., Path], models: Callable[[str], Path], tmp_path: Path
) -> None:
    module = ModuleType("a_package_of_2024")
    for base in (object, list, dict, set):
        name = f"Own{base.__name__}"
        kind = type(name, (base,), {"__module__": module.__name__})
        setattr(module, name, kind)

    def age(content: dict[str, Any]) -> None:
        args = vars(content["args"])
        kept = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels")
        kept += ("swiglu", "group_query_attention", "num_query_groups", "position_embedding_type")
        kept += ("max_position_embeddings", "layernorm_epsilon", "add_bias_linear", "vocab_size")
        kept += ("untie_embeddings_and_output_weights", "tensor_model_parallel_size", "rotary_base")
        old = {name: args[name] for name in kept}
        old |= {"apply_layernorm_rms": True, "rotary_position_embeddings_in_fp32": True}
        old["timers"] = module.Ownobject()
        old["timers"].log_level = OrderedDict(a=1)
        old["names"] = module.Ownlist(["a"])
        old["more"] = module.Owndict(a=1)
        old["ids"] = module.Ownset({1})
        content["args"] = argparse.Namespace(**old)

    sys.modules[module.__name__] = module
    try:
        folder = changed("TP2", age)
    finally:
        del sys.modules[module.__name__]
    convert(folder, tmp_path / "hf")
    assert same(tmp_path / "hf", models("Llama 2") / "hf")


class Harmful:
    """Runs a program when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_no_code_of_a_checkpoint_runs(changed: Callable[..., Path], tmp_path: Path) -> None:
    folder = changed("one rank", lambda content: content.update(rng_state=Harmful(tmp_path / "mark")))
    convert(folder, tmp_path / "hf")
    assert not (tmp_path / "mark").exists()


def refused(folder: Path, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        convert(folder, tmp_path / "target", **options)
    assert not (tmp_path / "target").exists()
    return str(caught.value)


def test_missing_ranks_are_listed(changed: Callable[..., Path], tmp_path: Path) -> None:
    folder = changed("TP2 PP2")
    shutil.rmtree(folder / SAVED / "mp_rank_01_000")
    assert "1 ranks are missing: mp_rank_01_000" in refused(folder, tmp_path)


def test_a_layout_that_its_arguments_contradict_is_refused(
    changed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = changed("PP2", lambda content: setattr(content["args"], "pipeline_model_parallel_size", 1))
    assert "mp_rank_00_000: not a name of a rank of TP1 PP1 EP1" in refused(folder, tmp_path)


def test_an_unfinished_save_is_named_with_its_format(changed: Callable[..., Path], tmp_path: Path) -> None:
    folder = changed("one rank")
    (folder / SAVED).rename(folder / "iter_0000007")
    assert "in Megatron's `torch` format, and latest_checkpointed_iteration.txt does not show" in refused(
        folder, tmp_path
    )
    (folder / TRACKER).unlink()
    convert(folder / "iter_0000007", tmp_path / "copied without its tracker")


def test_a_truncated_file_is_named(changed: Callable[..., Path], tmp_path: Path) -> None:
    folder = changed("TP2")
    file = folder / SAVED / "mp_rank_01" / RANK_FILE
    file.write_bytes(file.read_bytes()[:-1000])
    assert "mp_rank_01/model_optim_rng.pt: cannot be read: damaged or truncated" in refused(folder, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"num_layers", b"\x80um_layers", "damaged ("),
        (b"argparse", b"argpause", "it has no `args`"),
    ],
)
def test_a_changed_file_is_refused(
    old: bytes, new: bytes, message: str, changed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = changed("one rank")
    file = folder / SAVED / "mp_rank_00" / RANK_FILE
    file.write_bytes(file.read_bytes().replace(old, new, 1))
    assert message in refused(folder, tmp_path)


def legacy(content: dict[str, Any]) -> None:
    content["model"] = {"language_model": {"encoder": content["model"]}}


def uneven_experts(content: dict[str, Any]) -> None:
    content["args"].tensor_model_parallel_size = 4
    content["args"].expert_tensor_parallel_size = 2


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("one rank", legacy, "classes before Megatron-core (`use_mcore_models: false`); convert it"),
        ("one rank", lambda content: content.pop("model"), "it holds no model"),
        ("one rank", lambda content: content.pop("args"), "it has no `args`"),
        (
            "one rank",
            lambda content: content["model"].pop("decoder.layers.1.mlp.linear_fc2.weight"),
            "1 tensors are missing: decoder.layers.1.mlp.linear_fc2.weight",
        ),
        (
            "TP2",
            lambda content: content["model"].update({"decoder.layers.0.more": torch.ones(1)}),
            "1 tensors do not belong to the family llama: decoder.layers.0.more",
        ),
        (
            "TP2",
            lambda content: content["model"].update({"decoder.final_layernorm.weight": torch.ones(63)}),
            "decoder.final_layernorm.weight has shape [63] on 2 tensor parallel ranks",
        ),
        ("PP2", lambda content: setattr(content["args"], "num_layers", 3), "4 layers, but num_layers is 3"),
        ("EP2", uneven_experts, "resume it once with `ckpt_format: torch_dist`, in the layout that saved it"),
        (
            "one rank",
            lambda content: setattr(content["args"], "hetero_process_meshes", [1] * 10),
            "saved by unequal meshes",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(
    name: str,
    change: Callable[[dict[str, Any]], None],
    message: str,
    changed: Callable[..., Path],
    tmp_path: Path,
) -> None:
    assert message in refused(changed(name, change), tmp_path)


def test_logits_cannot_be_verified(saved: Path, tmp_path: Path) -> None:
    message = refused(saved / "one rank" / "torch", tmp_path, verify=True)
    assert "convert it with `--to megatron` first" in message
