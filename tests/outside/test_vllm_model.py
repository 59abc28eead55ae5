"""A model that another package adds to vLLM passes the launcher's check, and vLLM opens it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.test_serve import has_vllm
from tests.outside.conftest import Installed

pytestmark = pytest.mark.slow

EXPERIMENT = """
experiment:
  exp_name: toy
  exp_dir: {folder}/out
  task: {{type: inference, backend: vllm}}
  runner: {{platform: cpu}}
action: dryrun
inference:
  llm: {{model: {folder}}}
  generate: {{prompts: [hello]}}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the model's configuration and an experiment that uses it."""
    config = {"model_type": "toy", "architectures": ["ToyForCausalLM"], "hidden_size": 128}
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 4}))
    header = b"{}"
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "toy.yaml").write_text(EXPERIMENT.format(folder=tmp_path))
    return tmp_path


def test_the_launcher_accepts_the_architecture(install: Callable[..., Installed], model: Path) -> None:
    words = ("--config-path", str(model), "--config-name", "toy")
    done = install("vllm_model").flagscale(*words)
    assert done.returncode == 0, done.stderr
    # Without the package it is refused; here another package is installed.
    done = install("action").flagscale(*words)
    assert done.returncode == 2
    assert "vLLM does not support its architecture `ToyForCausalLM`" in done.stderr


@pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)")
def test_vllm_opens_the_model(install: Callable[..., Installed], model: Path) -> None:
    program = (
        "import sys\n"
        "from vllm.plugins import load_general_plugins; load_general_plugins()\n"
        "from vllm.transformers_utils.config import get_config\n"
        "from vllm import ModelRegistry\n"
        "config = get_config(sys.argv[1], trust_remote_code=False)\n"
        "print(type(config).__name__, 'ToyForCausalLM' in ModelRegistry.get_supported_archs())\n"
    )
    done = install("vllm_model").python("-c", program, str(model))
    assert done.stdout.splitlines()[-1:] == ["ToyConfig True"], done.stderr
