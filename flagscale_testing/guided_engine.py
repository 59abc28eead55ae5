"""Answers requests with one vLLM engine that has guidance, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flagscale.run.env import import_path

ROOT = Path(__file__).resolve().parent.parent
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # ranks beside each other, whatever the number of cores
}
_SETTINGS = {
    "dtype": "float32",
    "max_model_len": 256,
    "enforce_eager": True,
    "seed": 0,
    "async_scheduling": False,
    "kv_cache_memory_bytes": 1 << 28,
    "max_num_seqs": 16,
}


def answers(
    model: Path, requests: Sequence[tuple[Sequence[int], Mapping[str, Any]]], **settings: Any
) -> list[dict[str, Any]]:
    """Return what an engine with these arguments answers to all requests (prompt, sampling fields) at once.

    Among the sampling fields, `adapter` is the folder of a LoRA adapter. Each answer has `tokens` (one list
    per output), `logprobs` (of the generated tokens, or None) and `finished` (reasons); or `error`, the
    text of the refusal.
    """
    ranks = settings.get("tensor_parallel_size", 1) * settings.get("pipeline_parallel_size", 1)
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": str(int(ranks > 1)), "PYTHONPATH": import_path(str(ROOT))}
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "asked.json"), Path(folder, "answered.json")
        asked.write_text(json.dumps([{**_SETTINGS, "model": str(model), **settings}, list(requests)]))
        done = subprocess.run(
            [sys.executable, "-m", "flagscale_testing.guided_engine", str(asked), str(answered)],
            env={**os.environ, **_ENVIRONMENT, **own},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(
                f"the engine ended with status {done.returncode}:\n{done.stdout}\n{done.stderr}"
            )
        return list(json.loads(answered.read_text()))


def main(asked: str, answered: str) -> None:
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    from vllm_flagscale.guidance.wiring import ASYNC_SCHEDULER, PROCESSOR, SCHEDULER

    settings, requests = json.loads(Path(asked).read_text())
    folders = sorted({fields["adapter"] for _, fields in requests if fields.get("adapter")})
    adapters = {folder: LoRARequest(folder, number, folder) for number, folder in enumerate(folders, 1)}
    scheduler = ASYNC_SCHEDULER if settings["async_scheduling"] else SCHEDULER
    engine = LLM(**settings, scheduler_cls=scheduler, logits_processors=[PROCESSOR])
    found: dict[int, dict[str, Any]] = {}
    accepted: list[int] = []
    for index, (prompt, fields) in enumerate(requests):
        error = _refusal(engine, prompt, fields)
        if error is None:
            accepted.append(index)
        else:
            found[index] = {"error": error}
    outputs = engine.generate(
        [{"prompt_token_ids": requests[index][0]} for index in accepted],
        [_params(requests[index][1]) for index in accepted],
        lora_request=[adapters.get(requests[index][1].get("adapter")) for index in accepted],
        use_tqdm=False,
    )
    for index, output in zip(accepted, outputs, strict=True):
        found[index] = _answer(output)
    Path(answered).write_text(json.dumps([found[index] for index in range(len(requests))]))


def _params(fields: Mapping[str, Any]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    known = {name: value for name, value in fields.items() if name != "adapter"}
    if constraint := fields.get("structured_outputs"):
        known["structured_outputs"] = StructuredOutputsParams(**constraint)
    return SamplingParams(**known)


def _refusal(engine: Any, prompt: Sequence[int], fields: Mapping[str, Any]) -> str | None:
    """Return why the frontend refuses a request, by its own check of parameters."""
    from vllm.exceptions import VLLMValidationError

    try:
        engine.llm_engine.input_processor._validate_params(_params(fields), ("generate",))
    except VLLMValidationError as error:
        return str(error)
    return None


def _answer(output: Any) -> dict[str, Any]:
    each = [one.logprobs for one in output.outputs]
    return {
        "tokens": [list(one.token_ids) for one in output.outputs],
        "finished": [one.finish_reason for one in output.outputs],
        "logprobs": [
            [place[token].logprob for place, token in zip(logprobs, one.token_ids, strict=True)]
            for logprobs, one in zip(each, output.outputs, strict=True)
            if logprobs is not None
        ],
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
