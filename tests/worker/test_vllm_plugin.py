"""Inside vLLM's processes: the committed catalog matches the installed engine, and our models are known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_serve import has_vllm

ROOT = Path(__file__).resolve().parents[2]
CATALOG = ROOT / "flagscale/engines/catalog/vllm.json"

pytestmark = [
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)"),
    pytest.mark.timeout(600),
]


def python(*words: str) -> str:
    """Run a program in its own process: vLLM and the stand-ins for CUDA cannot share one."""
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=560, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_committed_catalog_matches_the_installed_engine() -> None:
    assert json.loads(python("-m", "vllm_flagscale.catalog")) == json.loads(CATALOG.read_text()), (
        "run make catalog"
    )


def test_vllm_finds_our_plugin_and_loads_aquila(tmp_path: Path) -> None:
    config = {"model_type": "aquila", "architectures": ["AquilaForCausalLM"], "hidden_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    program = (
        "import sys\n"
        "from vllm.plugins import load_general_plugins; load_general_plugins()\n"
        "import vllm_flagscale; vllm_flagscale.register()\n"  # repeated, as in an engine of several processes
        "from vllm.transformers_utils.config import get_config\n"
        "from vllm import ModelRegistry\n"
        "config = get_config(sys.argv[1], trust_remote_code=False)\n"
        "print(type(config).__name__, config.hidden_size, *config.architectures)\n"
        "print('AquilaForCausalLM' in ModelRegistry.get_supported_archs())\n"
    )
    assert python("-c", program, str(tmp_path)).splitlines()[-2:] == [
        "AquilaConfig 128 AquilaForCausalLM",
        "True",
    ]
