"""Inside vLLM's processes: the committed catalog matches the installed engine, and our models are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flagscale.config.catalog import Option, catalog_from
from flagscale.config.engine_args import FlatKey, render
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem
from flagscale_testing import conversion, forked_python
from megatron.flagscale.convert.convert import convert
from tests.e2e.test_serve import has_vllm

ROOT = Path(__file__).resolve().parents[2]
CATALOG = ROOT / "flagscale/engines/catalog/vllm.json"

pytestmark = [
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)"),
    pytest.mark.timeout(900),
]


def python(*words: str) -> str:
    """Run a program in its own process: vLLM and the stand-ins for CUDA cannot share one."""
    done = forked_python.python("vllm.engine.arg_utils", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
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
        "import pickle; pickle.dumps(config)\n"  # an engine sends it to its processes
        "print(type(config).__name__, config.hidden_size, *config.architectures)\n"
        "print('AquilaForCausalLM' in ModelRegistry.get_supported_archs())\n"
    )
    assert python("-c", program, str(tmp_path)).splitlines()[-2:] == [
        "AquilaConfig 128 AquilaForCausalLM",
        "True",
    ]


@pytest.mark.slow
def test_an_aquila_answers_as_the_llama_that_it_is(tmp_path: Path) -> None:
    model = conversion.Case("Llama", {"hidden_size": 128, "num_key_value_heads": 4, "rms_norm_eps": 1e-5})
    conversion.make_model(model, tmp_path / "llama")
    convert(tmp_path / "llama", tmp_path / "aquila", to="huggingface", family="aquila")
    code = """if __name__ == "__main__":
        import sys
        from vllm import LLM, SamplingParams
        prompts = [{"prompt_token_ids": list(range(1, 9))}, {"prompt_token_ids": [7, 3, 200]}]
        # On CPU, the engine refuses to start if other programs use more than the rest of the memory.
        small = {"skip_tokenizer_init": True, "enforce_eager": True, "gpu_memory_utilization": 0.2}
        engine = LLM(sys.argv[1], dtype="float32", **small)
        greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, detokenize=False)
        print("tokens", [one.outputs[0].token_ids for one in engine.generate(prompts, greedy)])
    """
    (tmp_path / "answer.py").write_text(code)
    answers = []
    for form in ("llama", "aquila"):
        lines = python(str(tmp_path / "answer.py"), str(tmp_path / form)).splitlines()
        answers.append([line for line in lines if line.startswith("tokens [")])
    assert answers[0] == answers[1]
    assert len(answers[0]) == 1


def read_as(kind: str, text: str) -> Any:
    """Return the value that FlagScale reads for an argument of this type; None if it refuses the text."""
    option = Option("given", "given", "value", kind, None, (), None, None, False)
    problems: list[Problem] = []
    catalog = catalog_from("vllm", "", {"given": option})
    arguments = render([FlatKey("given", text, "given")], catalog, SourceMap(), problems)
    return None if problems else arguments.values["given"]


SIZES = [
    *(f"{number}{unit}" for number in ("1", "1.5", "25.6", "0", "-1", "01") for unit in ("", *"kKmMgGtT")),
    *(
        "1e3",
        "1_000",
        "1 k",
        " 8k ",
        "8 ",
        "+8",
        "auto",
        "AUTO",
        " auto",
        "-1",
        "8kb",
        "k",
        "",
        "1.",
        ".5k",
        "0x10",
        "1" * 400 + "k",
        "1" * 400 + "K",
        "\u0661k",
        "8K ",
        "1.5 K",
        "1_0k",
        "--1",
        "inf",
        "nan",
    ),
]
JSONS = [
    '{"cpu_bytes_to_use": 80m}',
    '{"cpu_bytes_to_use": 1.5K}',
    '{"a": "80m", "b": [1k, 2.5g], "c": 1e3}',
    '{"a": "say \\"1.5K\\" here"}',
    '{"a": 1kk}',
    "{a: 1}",
    "{}",
    "[1k]",
    "text",
    " { } ",
    "{\n}",
    "",
]


def test_sizes_are_read_as_the_engine_reads_them() -> None:
    code = """if True:
        import argparse, json, sys
        from vllm.utils import argparse_utils as engine
        def read(function, text):
            try:
                return function(text)
            except (ValueError, OverflowError, argparse.ArgumentTypeError):
                return None
        kinds = ("human_readable_int", "human_readable_int_or_auto")
        texts = json.loads(sys.argv[1])
        print(json.dumps({kind: [read(getattr(engine, kind), text) for text in texts] for kind in kinds}))
    """
    engine = json.loads(python("-c", code, json.dumps(SIZES)).splitlines()[-1])
    for kind, expected in engine.items():
        found = [read_as(kind, text) for text in SIZES]
        assert dict(zip(SIZES, found, strict=True)) == dict(zip(SIZES, expected, strict=True)), kind


@pytest.mark.slow
def test_json_is_read_as_the_engine_reads_it() -> None:
    code = """if True:
        import argparse, json, sys
        from typing import Any
        from pydantic import TypeAdapter
        from vllm.engine import arg_utils as engine
        readers = {
            "loads": engine.parse_type(json.loads),
            "union_dict_and_str": engine.union_dict_and_str,
            "parse_dataclass": lambda text: TypeAdapter(Any).validate_json(
                engine._expand_json_human_readable_numbers(text)
            ),
        }
        def reads(function, text):
            try:
                function(text)
            except (ValueError, argparse.ArgumentTypeError):
                return False
            return True
        texts = json.loads(sys.argv[1])
        print(json.dumps({kind: [reads(one, text) for text in texts] for kind, one in readers.items()}))
    """
    engine = json.loads(python("-c", code, json.dumps(JSONS)).splitlines()[-1])
    for kind, expected in engine.items():
        found = [read_as(kind, text) is not None for text in JSONS]
        assert dict(zip(JSONS, found, strict=True)) == dict(zip(JSONS, expected, strict=True)), kind
