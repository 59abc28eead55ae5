"""Every example of a training, made small, passes the launcher's rules and learns: its loss falls at once.

Examples with pictures have their own tests (test_picture_training.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flagscale.errors import UserError
from flagscale.values import Job
from flagscale_testing.chat_templates import write_chat_tokenizer
from flagscale_testing.chats import CHATML
from flagscale_testing.golden_losses import TEXT, load_example, write_text
from flagscale_testing.ranks.conversations import PROGRAM
from flagscale_testing.ranks.forked import Curve, Run, run_all
from flagscale_testing.ranks.training import ROOT
from flagscale_testing.shrunk import STEPS, flat, job_of, ranks_of, shrunk
from tools.datasets.chat import Settings, prepare

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),
]  # the engine warns of missing TE
TEXTS = {path: path.read_text() for path in sorted((ROOT / "examples").glob("*/conf/*.yaml"))}
TRAINED = {
    f"{path.parents[1].name}/{path.stem}": "train_gpt_sft" in text
    for path, text in TEXTS.items()
    if "type: train" in text and "train_llava" not in text
}
"""Every training without pictures, by its folder and configuration, and whether it learns conversations."""
TUNED = {"qwen/config_qwen3_8b_sft": "qwen3", "llama/config_llama3_8b_lora": "llama"}
"""Examples that start from a Hugging Face folder, with the model's type there."""
PLAIN = [name for name, is_tuned in TRAINED.items() if not is_tuned]
FAST = "qwen/config_qwen3_30b_a3b"
LENGTH = 256
"""Tokens of a sample of conversations."""
SMALL = {"seq_length": LENGTH, "lr": 1e-2, "min_lr": 1e-3}


def problem_of(curve: Curve) -> str:
    """Return why a training is not one, or "" if it did all steps and its loss fell in each."""
    if curve.error or len(curve.losses) != STEPS:
        return curve.error or f"{len(curve.losses)} steps"
    falls = all(
        later < earlier - 0.05 for earlier, later in zip(curve.losses, curve.losses[1:], strict=False)
    )
    return "" if falls else f"the loss does not fall: {curve.losses}"


def job(example: str, folder: Path, *overrides: str, **changes: Any) -> Job:
    experiment = load_example(example, *overrides).model_copy(update={"exp_dir": folder / "run"})
    return job_of(shrunk(experiment, data_cache_path=str(folder / "cache"), **changes))


def plain_run(example: str, folder: Path, *overrides: str) -> Run:
    """Return the run of an example on text in `folder`."""
    prefix = folder / "text"
    if not prefix.with_suffix(".idx").exists():
        write_text(prefix)
    made = job(example, folder, *overrides, data_path=[str(prefix)], split="90,10,0")
    return Run(example, made.hosts[0].slots, made.role.argv)


@pytest.mark.parametrize("example", TRAINED)
def test_it_keeps_its_kind(example: str) -> None:
    given = flat(load_example(example).arguments)
    small = flat(shrunk(load_example(example)).arguments)
    for name in ("tensor_model", "pipeline_model", "context", "expert_model"):
        degree = f"{name}_parallel_size"
        assert (small.get(degree) or 1) == min(given.get(degree) or 1, 2)
    for name in (
        "bf16",
        "swiglu",
        "add_qkv_bias",
        "qk_layernorm",
        "multi_latent_attention",
        "use_rope_scaling",
    ):
        assert small.get(name) == given.get(name)
    assert ("num_experts" in small, "lora_rank" in small) == ("num_experts" in given, "lora_rank" in given)
    assert small["num_layers"] <= 4
    assert ranks_of(small) <= 4


def test_ratios_stay() -> None:
    small = flat(shrunk(load_example("qwen/config_qwen3_30b_a3b")).arguments)
    assert (small["num_attention_heads"], small["num_query_groups"]) == (16, 2)  # 32 and 4
    assert (small["hidden_size"], small["kv_channels"], small["moe_ffn_hidden_size"]) == (128, 16, 48)
    assert (small["num_experts"], small["moe_router_topk"], small["init_method_std"]) == (8, 2, 0.08)


@pytest.mark.parametrize("example", PLAIN)
def test_the_launcher_accepts_it(example: str, tmp_path: Path) -> None:
    assert plain_run(example, tmp_path).ranks in (2, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("shrunk")
    return made


@pytest.fixture(scope="module")
def conversations(folder: Path) -> Mapping[str, Any]:
    """Return the arguments for the docstrings, prepared with a small tokenizer."""
    tokenizer = write_chat_tokenizer(folder / "tokenizer", CHATML)
    prepare([TEXT], tokenizer, folder / "chats", Settings(longest=LENGTH), valid_every=10)
    prefixes = {
        f"{split}_data_path": [f"{folder}/chats/{split}_text_document"] for split in ("train", "valid")
    }
    by_tokenizer = {
        "tokenizer_type": "HuggingFaceTokenizer",
        "vocab_size": None,
        "make_vocab_size_divisible_by": None,
    }
    return {**prefixes, **by_tokenizer, "tokenizer_model": str(tokenizer)}


def write_base(example: str, folder: Path, tokenizer: str) -> tuple[Path, int]:
    """Write a random model with the shape of the shrunk example; return its folder and its vocabulary."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    values = flat(shrunk(load_example(example)).arguments)
    opened = AutoTokenizer.from_pretrained(tokenizer)
    opened.save_pretrained(folder)
    rope = {"rope_type": "default", "rope_theta": float(values["rotary_base"])}
    if values.get("use_rope_scaling"):
        scaled = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        rope |= {"rope_type": "llama3", "factor": values["rope_scaling_factor"], **scaled}
    heads = values["num_attention_heads"]
    config = AutoConfig.for_model(
        TUNED[example],
        vocab_size=len(opened),
        hidden_size=values["hidden_size"],
        intermediate_size=values["ffn_hidden_size"],
        num_hidden_layers=values["num_layers"],
        num_attention_heads=heads,
        num_key_value_heads=values["num_query_groups"],
        head_dim=values.get("kv_channels", values["hidden_size"] // heads),
        max_position_embeddings=values["max_position_embeddings"],
        rms_norm_eps=values["norm_epsilon"],
        rope_parameters=rope,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder, len(opened)


@pytest.fixture(scope="module")
def curves(folder: Path, conversations: Mapping[str, Any]) -> dict[str, Curve]:
    runs = [plain_run(FAST, folder), plain_run(FAST, folder, "train.model.init_method_std=0")]
    runs[1] = Run("broken", runs[1].ranks, runs[1].argv)
    for example, kind in TUNED.items():
        base, vocabulary = write_base(example, folder / kind, conversations["tokenizer_model"])
        own = {
            "pretrained_checkpoint": str(base),
            "tokenizer_model": str(base),
            "padded_vocab_size": vocabulary,
        }
        made = job(example, folder / kind, **{**SMALL, **conversations, **own})
        runs.append(Run(example, made.hosts[0].slots, made.role.argv, PROGRAM))
    return run_all(runs, folder / "runs")


@pytest.mark.parametrize("example", [FAST, *TUNED])
def test_an_example_learns(example: str, curves: dict[str, Curve]) -> None:
    assert problem_of(curves[example]) == ""


def test_an_example_that_cannot_learn_is_noticed(curves: dict[str, Curve]) -> None:
    assert "the loss does not fall" in problem_of(curves["broken"])


def test_an_example_with_a_misspelt_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean `num_experts`"):
        plain_run(FAST, tmp_path, "+train.model.experts.num_expert=8")


@pytest.fixture(scope="module")
def slow_curves(folder: Path, conversations: Mapping[str, Any]) -> dict[str, Curve]:
    runs = [plain_run(example, folder) for example in PLAIN if example != FAST]
    for example in TRAINED:
        if TRAINED[example] and example not in TUNED:
            whole = {"pretrained_checkpoint": None, "lora_rank": None, "lora_alpha": None}
            made = job(example, folder / "demo", **{**SMALL, **conversations, **whole})
            runs.append(Run(example, made.hosts[0].slots, made.role.argv, PROGRAM))
    return run_all(runs, folder / "slow")


@pytest.mark.slow
@pytest.mark.timeout(3600)  # twenty trainings, one after another, count for the first of them
@pytest.mark.parametrize("example", [name for name in TRAINED if name != FAST and name not in TUNED])
def test_every_other_example_learns(example: str, slow_curves: dict[str, Curve]) -> None:
    assert problem_of(slow_curves[example]) == ""
