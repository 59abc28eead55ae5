"""Every shipped configuration goes through dryrun, and its output is compared with a golden file.

`UPDATE_GOLDEN=1 pytest tests/unit/test_examples.py` rewrites them; read the difference before committing.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flagscale.cli import main
from flagscale.run.checkpoints import TRACKER
from flagscale_testing.conversations import write_conversations
from flagscale_testing.energon_folders import write_folder
from flagscale_testing.example_jobs import ON_A_PLATFORM

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
CONFIGS = sorted((ROOT / "examples").glob("*/conf/*.yaml"))

MISSPELT = {
    "train": ("train.model.num_layer", "train.model.hidden_size=wide", "num_layers"),
    "serve": ("serve.tensor_paralel_size", "serve.port=wide", "tensor_parallel_size"),
    "evaluate": ("evaluate.num_fewshots", "evaluate.batch_size=wide", "num_fewshot"),
    "inference": ("inference.llm.max_model_length", "inference.llm.dtype=wide", "max_model_len"),
}
"""By task type: a key that does not exist, a key with a wrong value, and the intended name."""
DEMO_DATA = ("data/demo/train_text_document", "data/demo/valid_text_document")
DEMO = {"num_hidden_layers": 4, "intermediate_size": 384, "rms_norm_eps": 1e-5}
"""Of the demo's model, in Hugging Face's format."""
TUNED = {
    "Qwen3-8B": {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    },
    "Llama-3.1-8B-Instruct": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
}
"""Published models in `models/` that are tuned, as their `config.json` describes them."""
DEMO_CHATS = ("data/demo_chat/train", "data/demo_chat/valid", "data/demo_lora/train", "data/demo_lora/valid")
DOCSTRINGS = tuple(
    f"data/docstrings_{of}/{split}" for of in ("qwen3", "llama3") for split in ("train", "valid")
)
PICTURES = (
    "data/pictures_demo/energon",
    "data/llava_pretrain",
    "data/llava_instruct",
    "data/llava_onevision",
)
STARTS = ("llava_7b_start", "llava_onevision_0.5b", "llava_onevision_1.5b", "llava_onevision_7b")
"""Models in `checkpoints/` from which the trainings with pictures start, each with its tokenizer."""


def name_of(config: Path) -> str:
    return f"{config.parents[1].name}_{config.stem}"


@pytest.fixture
def fresh_clone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_data: Callable[..., str],
    write_model: Callable[..., Path],
) -> Path:
    """A directory like the root of a clone with the demo's data and model, and without visible GPUs.

    A cloud platform calls it `this-host`, the first of 2.
    """
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "argv", ["run.py"])
    for name, value in ON_A_PLATFORM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "this-host", "6.1", "#1", "x86_64")))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for prefix in DEMO_DATA:
        write_data(tmp_path / prefix)
    for name in (*DEMO_CHATS, *DOCSTRINGS):
        write_conversations(tmp_path / name, [([1] * 20, [0] * 10 + [1] * 10)] * 8)
    write_tracker(tmp_path / "outputs" / "aquila_demo" / "checkpoints")
    (tmp_path / "data" / "demo" / "tokenizer").mkdir()
    (tmp_path / "data" / "demo" / "tokenizer" / "tokenizer.json").touch()
    write_model(tmp_path / "outputs" / "aquila_demo" / "hf")
    write_model(tmp_path / "outputs" / "aquila_demo" / "chat", **DEMO)
    for name, config in TUNED.items():
        write_model(tmp_path / "models" / name, **config)
    write_adapter(tmp_path / "outputs" / "aquila_demo_lora" / "adapter", rank=16)
    for folder in PICTURES:
        write_folder(tmp_path / folder, {"train": 64, "val": 8})
    write_tokenizer(tmp_path / "data" / "pictures_demo" / "tokenizer")
    write_tracker(tmp_path / "outputs" / "llava_7b_pretrain" / "checkpoints")
    for name in STARTS:
        write_tokenizer(write_tracker(tmp_path / "checkpoints" / name) / "tokenizer")
    write_model(tmp_path / "outputs" / "llava_demo" / "hf")
    write_model(tmp_path / "outputs" / "llava_7b" / "hf", max_position_embeddings=4096)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_tracker(folder: Path) -> Path:
    """Write what makes a folder one of checkpoints, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRACKER).write_text("release")
    return folder


def write_adapter(folder: Path, rank: int) -> None:
    """Write a folder of PEFT, as far as the launcher reads it."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    (folder / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer with the tokens of pictures and a chat template, as far as the launcher reads it."""
    folder.mkdir()
    known = {
        "model": {"type": "BPE", "vocab": {"a": 0, "<image>": 1, "<video>": 2}, "merges": []},
        "added_tokens": [],
    }
    (folder / "tokenizer.json").write_text(json.dumps(known))
    (folder / "chat_template.jinja").touch()


def dryrun(config: Path, *overrides: str) -> int:
    where = ["--config-path", f"./examples/{config.parents[1].name}/conf", "--config-name", config.stem]
    return main([*where, "action=dryrun", *overrides])


def portable(text: str, directory: Path) -> str:
    """Replace the paths of this machine with placeholders, and the figures of an estimate, which improve."""
    text = re.sub(r"^  (memory|warning): .*$", r"  \1: ESTIMATE", text, flags=re.MULTILINE)
    for path, placeholder in ((sys.executable, "PYTHON"), (str(directory), "DIR"), (str(ROOT), "ROOT")):
        text = text.replace(path, placeholder)
    return text


def of_outer_hosts(text: str, most: int = 8) -> str:
    """Leave out the scripts of all hosts but the first and the last one if there are more than `most`."""
    parts = re.split(r"^(?=# \S+/host_\d+_\S+\.sh$)", text, flags=re.MULTILINE)
    ranks = [int(re.match(r"# \S+/host_(\d+)_", part)[1]) for part in parts[1:]]
    kept = {0, max(ranks)} if max(ranks) >= most else {*ranks}
    return "".join([parts[0], *(part for part, rank in zip(parts[1:], ranks, strict=True) if rank in kept)])


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_dryrun_prints_the_golden_plan(
    config: Path, fresh_clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(fresh_clone.rglob("*"))
    code = dryrun(config)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert sorted(fresh_clone.rglob("*")) == before, "a dryrun writes nothing"
    text = of_outer_hosts(portable(printed.out + printed.err, fresh_clone))
    golden = GOLDEN / f"{name_of(config)}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert golden.is_file(), f"UPDATE_GOLDEN=1 writes {golden.name}"
    assert text == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_the_recorded_configuration_plans_the_same_job(
    config: Path, fresh_clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dryrun(config) == 0
    planned = capsys.readouterr().out
    recorded = re.search(r"^# .*/config\.yaml\n(.*?)\n\n# ", planned, re.MULTILINE | re.DOTALL)
    assert recorded
    (fresh_clone / "recorded").mkdir()
    (fresh_clone / "recorded" / "config.yaml").write_text(recorded[1])
    assert main(["--config-path", "./recorded", "--config-name", "config", "action=dryrun"]) == 0
    assert capsys.readouterr().out == planned


def test_every_golden_file_belongs_to_an_example() -> None:
    assert {path.stem for path in GOLDEN.glob("*_config*.txt")} == {name_of(config) for config in CONFIGS}


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_golden_files_and_examples_contain_no_path_of_a_machine(config: Path) -> None:
    texts = [path.read_text() for path in (config, GOLDEN / f"{name_of(config)}.txt")]
    texts += [path.read_text() for path in config.parent.glob("*/*.yaml")]
    for text in texts:
        assert not re.search(r"/(home|root|tmp|Users)/", text)


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_a_misspelt_key_is_found_in_every_example(
    config: Path, fresh_clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = next(name for name in MISSPELT if f"type: {name}" in config.read_text())
    key, value, meant = MISSPELT[group]
    assert dryrun(config, f"+{key}=3", value) == 2
    error = capsys.readouterr().err
    assert "2 mistakes" in error
    assert f"command line: {key}" in error
    assert f"did you mean `{meant}`?" in error


def test_a_mistake_in_a_file_is_reported_with_its_line(
    fresh_clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = fresh_clone / "mine" / "conf"
    (conf / "train").mkdir(parents=True, exist_ok=True)
    source = ROOT / "examples" / "aquila" / "conf"
    demo = (source / "train" / "demo.yaml").read_text().replace("hidden_size: 128", "hiden_size: 128", 1)
    (conf / "train" / "demo.yaml").write_text(demo)
    (conf / "config.yaml").write_text((source / "config.yaml").read_text())
    line = 1 + next(number for number, text in enumerate(demo.splitlines()) if "hiden_size" in text)
    assert main(["--config-path", "mine/conf", "--config-name", "config", "action=dryrun"]) == 2
    error = capsys.readouterr().err
    assert f"mine/conf/train/demo.yaml:{line}: train.model.hiden_size: " in error
    assert "did you mean `hidden_size`?" in error


def test_a_group_file_beside_another_is_named(fresh_clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = fresh_clone / "mine" / "conf"
    source = ROOT / "examples" / "aquila" / "conf"
    (conf / "train").mkdir(parents=True, exist_ok=True)
    for name in ("config_7b.yaml", "train/aquila_7b.yaml", "train/aquila_common.yaml"):
        (conf / name).write_text((source / name).read_text().replace("adam_beta2: 0.95", "adam_beta3: 0.95"))
    assert main(["--config-path", "mine/conf", "--config-name", "config_7b", "action=dryrun"]) == 2
    assert re.search(
        r"mine/conf/train/aquila_common.yaml:\d+: train.model.optimizer.adam_beta3", capsys.readouterr().err
    )
