"""Helpers of the unit tests: YAML text to an experiment, task keys to a job, small data files."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from flagscale.config.catalog import Catalog, load_catalog
from flagscale.config.load import load_experiment
from flagscale.config.schema import Commands, Environment, Experiment, Runner, Task
from flagscale.config.source_map import SourceMap, index_sources
from flagscale.engines.megatron.adapter import CATALOG, MEGATRON
from flagscale.errors import Problem, UserError
from flagscale.values import Host, Job
from flagscale_testing.pairs import write_pair

HOSTILE = [
    "two words",
    " leading and trailing ",
    'it\'s "quoted" twice',
    "$HOME ${HOME} $(touch x) `touch x`",
    "a;b|c&d>e",
    "line one\nline two\ttab",
    "snow ☃ and 漢字",
    '{"json": [1, "two", null]}',
    "--looks-like=an-option",
    "-1e-5",
    "#comment",
    "\\n\\",
    "",
]
"""Values that break code which pastes them into a shell string."""

EXPERIMENT = """\
experiment:
  exp_name: demo
  exp_dir: ./outputs/demo
  task:
    type: train
    backend: megatron
    entrypoint: megatron.flagscale.train_gpt
  runner:
    nproc_per_node: 4
train:
  model:
    num_layers: 4
action: run
"""

TINY_JOB = """
experiment:
  exp_name: tiny
  exp_dir: {exp_dir}
  task: {{type: train, backend: megatron, entrypoint: megatron.flagscale.train_gpt}}
  runner: {{nproc_per_node: 2, platform: cpu}}
  envs: {{PLAIN: 1, SERVICE_TOKEN: do-not-tell}}
action: dryrun
train:
  model:
    num_layers: 2
    hidden_size: 32
    num_attention_heads: 4
    seq_length: 64
    max_position_embeddings: 64
    micro_batch_size: 1
    global_batch_size: 2
    train_iters: 1
    save_interval: 1
    lr: 1.0e-3
    disable_bias_linear: true
  data: {{mock_data: true, tokenizer_type: NullTokenizer, vocab_size: 100}}
  wandb_api_key: do-not-tell
"""
"""An experiment of one file, which passes every check once `exp_dir` is filled in."""

TASK = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "seq_length": 64,
    "max_position_embeddings": 64,
    "micro_batch_size": 2,
    "global_batch_size": 16,
    "train_iters": 10,
    "lr": 1e-3,
    "save_interval": 5,
    "mock_data": True,
    "tokenizer_type": "NullTokenizer",
    "vocab_size": 255,
}
"""Task keys of a small model that passes every check on any number of ranks up to 8."""


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return load_catalog(CATALOG)


@pytest.fixture
def compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[DictConfig, SourceMap]]:
    """Write text as `config.yaml`, apply overrides `a.b=c`, and return the result with its source map."""
    monkeypatch.chdir(tmp_path)

    def compose(text: str = EXPERIMENT, *overrides: str) -> tuple[DictConfig, SourceMap]:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        config = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        assert isinstance(config, DictConfig)
        return config, index_sources([(path, "")], overrides)

    return compose


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command line that names a small experiment below `tmp_path`, which is also the current directory."""
    conf = tmp_path / "conf"
    conf.mkdir()
    (conf / "config.yaml").write_text(TINY_JOB.format(exp_dir=tmp_path / "out"))
    monkeypatch.chdir(tmp_path)
    return ["--config-path", "conf", "--config-name", "config"]


@pytest.fixture
def load(compose: Callable[..., tuple[DictConfig, SourceMap]]) -> Callable[..., Experiment]:
    """Load text (default: `EXPERIMENT`) with overrides."""

    def load(*args: str) -> Experiment:
        loaded = load_experiment(*compose(*args))
        assert loaded.problems == ()
        assert loaded.experiment is not None
        return loaded.experiment

    return load


@pytest.fixture
def mistakes(compose: Callable[..., tuple[DictConfig, SourceMap]]) -> Callable[..., list[Problem]]:
    """Load text that has mistakes and return all of them."""

    def mistakes(*args: str) -> list[Problem]:
        loaded = load_experiment(*compose(*args))
        assert loaded.problems
        return list(loaded.problems)

    return mistakes


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Job]:
    """Build the job of task keys (`TASK` and changes; `None` leaves a key out) on one host."""

    def build(
        changes: Mapping[str, Any] | None = None,
        *,
        ranks: int = 1,
        platform: str = "nvidia",
        entrypoint: str = "megatron.flagscale.train_gpt",
        **runner: Any,
    ) -> Job:
        experiment = Experiment(
            name="demo",
            exp_dir=tmp_path / "run",
            task=Task(backend="megatron", entrypoint=entrypoint),
            runner=Runner(**runner),
            envs=Environment(),
            cmds=Commands(),
            arguments={**TASK, **(changes or {})},
        )
        return MEGATRON.build(experiment, (Host(0, "localhost", ranks, platform),), SourceMap())

    return build


@pytest.fixture(autouse=True)
def no_foreign_log_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra flushes every log handler of the process; other tests' libraries left some with closed files."""
    monkeypatch.setattr(logging, "_handlerList", [])


@pytest.fixture
def refused(build: Callable[..., Job]) -> Callable[..., list[str]]:
    """Build a job that must be refused and return its messages, `key path: what`."""

    def refused(changes: Mapping[str, Any] | None = None, **more: Any) -> list[str]:
        with pytest.raises(UserError) as raised:
            build(changes, **more)
        return [f"{problem.where}: {problem.what}" for problem in raised.value.problems]

    return refused


@pytest.fixture
def write_data() -> Callable[..., str]:
    """Write a sound `.bin/.idx` pair of uint16 documents, all of one token, and return its prefix."""

    def write_data(prefix: Path, documents: tuple[int, ...] = (5, 3)) -> str:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        write_pair(prefix, [*documents], b"\1\0" * sum(documents))
        return str(prefix)

    return write_data


@pytest.fixture
def write_tensors() -> Callable[..., None]:
    """Write a safetensors file of tensors of bytes, by name."""

    def write_tensors(path: Path, **tensors: bytes) -> None:
        header, end = {}, 0
        for name, values in tensors.items():
            header[name] = {"dtype": "U8", "shape": [len(values)], "data_offsets": [end, end + len(values)]}
            end += len(values)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensors.values()))

    return write_tensors


@pytest.fixture
def write_model() -> Callable[..., Path]:
    """Write a small sound model folder in Hugging Face's format and return it; keywords change its config."""

    def write_model(folder: Path, **config: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
        facts = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 256, "dtype": "bfloat16"}
        facts |= {**sizes, **config}
        (folder / "config.json").write_text(json.dumps(facts))
        header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
        (folder / "tokenizer.json").write_text("{}")
        return folder

    return write_model
