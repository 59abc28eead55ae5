"""Greedy continuations by vLLM of models that went through Megatron, and those of transformers.

Used by the tests and, for the table in docs/conversion.md, by `benchmarks/conversion_table.py`. vLLM changes
torch where it is imported, so it answers in a process of its own, all models one after the other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flagscale.run.env import import_path
from flagscale_testing.conversion import CASES, VOCAB, Case, make_model
from flagscale_testing.engines import ENVIRONMENT
from flagscale_testing.shapes import served
from megatron.flagscale.convert.convert import convert

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = (5, 40, 300)
"""Tokens of each prompt."""
NEW = 24
"""Tokens of each answer."""
POSITIONS = PROMPTS[-1] + NEW
_OWN = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
_SETTINGS = {
    "dtype": "float32",
    "max_model_len": POSITIONS,
    "enforce_eager": True,
    "skip_tokenizer_init": True,
    "kv_cache_memory_bytes": 1 << 26,
    "max_num_batched_tokens": 384,
    "max_num_seqs": 4,
}

OTHER_IN_VLLM = ("Moonlight",)
"""Models that vLLM 0.32 on the CPU continues with other tokens: latent attention without yarn, whose rotary
positions its kernel computes wrongly (`findings/vllm_cpu_rotates_only_flat_queries.sh`). With yarn, the
tokens of the same model are equal, and without it Megatron's logits are those of transformers, at 700
tokens too."""


@dataclass(frozen=True)
class Continuations:
    """The tokens with which vLLM and transformers continue the prompts; vLLM's `refusal` if it has none."""

    vllm: tuple[tuple[int, ...], ...]
    transformers: tuple[tuple[int, ...], ...]
    refusal: str = ""


def all_served(names: Iterable[str]) -> dict[str, Case]:
    """Return the named cases in shapes that vLLM serves; those in fp32, whose choices can be compared."""
    return {name: served(CASES[name], POSITIONS) for name in names if CASES[name].dtype == "float32"}


def answers(cases: Mapping[str, Case], folder: Path) -> dict[str, Continuations]:
    """Return the answers of these models to `prompts`, once they are converted to Megatron and back."""
    expected = {}
    for name, case in cases.items():
        model = make_model(case, folder / name / "hf", seed=5)
        expected[name] = tuple(_greedy(model, prompt) for prompt in prompts())
        convert(folder / name / "hf", folder / name / "megatron")
        convert(folder / name / "megatron", folder / name / "back", family=case.named.get("model_type"))
    found = _by_vllm({name: folder / name / "back" for name in cases}, folder)
    return {
        name: Continuations(tuple(map(tuple, one["tokens"])), expected[name], one["refusal"])
        for name, one in found.items()
    }


def prompts() -> list[list[int]]:
    """Return random prompts of the lengths `PROMPTS`."""
    random = torch.Generator().manual_seed(4)
    return [torch.randint(3, VOCAB - 1, (length,), generator=random).tolist() for length in PROMPTS]


def _greedy(model: Any, prompt: Sequence[int]) -> tuple[int, ...]:
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        tokens = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)
    return tuple(tokens[0, len(prompt) :].tolist())


def _by_vllm(models: Mapping[str, Path], folder: Path) -> dict[str, dict[str, Any]]:
    asked, answered = folder / "asked.json", folder / "answered.json"
    asked.write_text(json.dumps([{name: str(path) for name, path in models.items()}, prompts()]))
    environment = {**os.environ, **ENVIRONMENT, **_OWN, "PYTHONPATH": import_path(str(ROOT))}
    words = [sys.executable, "-m", "flagscale_testing.served_greedy", str(asked), str(answered)]
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"vLLM ended with status {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return dict(json.loads(answered.read_text()))


def main(asked: str, answered: str) -> None:
    """Answer the prompts in a file with every model that it names, into another file."""
    models, given = json.loads(Path(asked).read_text())
    found = {name: _answers_in_this_process(model, given) for name, model in models.items()}
    Path(answered).write_text(json.dumps(found))


def _answers_in_this_process(model: str, given: Sequence[Sequence[int]]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    _inspect_in_this_process(model)
    greedy = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False)
    asked = [{"prompt_token_ids": prompt} for prompt in given]
    try:
        found = LLM(model, **_SETTINGS).generate(asked, greedy, use_tqdm=False)
    except Exception as error:
        traceback.print_exc()
        return {"tokens": [], "refusal": str(error)}
    return {"tokens": [one.outputs[0].token_ids for one in found], "refusal": ""}


def _inspect_in_this_process(model: str) -> None:
    """Import the class of a model, which vLLM would do in a process of its own, with all of its imports."""
    from vllm import ModelRegistry

    for name in json.loads(Path(model, "config.json").read_text())["architectures"]:
        if name in ModelRegistry.models:  # those of plugins are not known yet
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


if __name__ == "__main__":
    main(*sys.argv[1:])
