"""Answers requests with vLLM engines that have guidance, in a process of their own or in this one."""

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
from flagscale_testing.engines import ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent
_ENVIRONMENT = {**ENVIRONMENT, "VLLM_LOGGING_LEVEL": "WARNING"}
_SETTINGS = {
    "dtype": "float32",
    "max_model_len": 256,
    "enforce_eager": True,
    "seed": 0,
    "async_scheduling": False,
    "kv_cache_memory_bytes": 1 << 28,
    "max_num_seqs": 16,
}


Request = tuple[Sequence[int], Mapping[str, Any]]
"""The ids of a prompt, and sampling fields; `adapter` among them is the folder of a LoRA adapter."""


def answers(model: Path, requests: Sequence[Request], **settings: Any) -> list[dict[str, Any]]:
    """Return what an engine with these arguments answers to all requests at once.

    Among the sampling fields, `adapter` is the folder of a LoRA adapter. Each answer has `tokens` (one list
    per output), `logprobs` (of the generated tokens, if asked for) and `finished` (reasons); or `error`, the
    text of the refusal.
    """
    (found,) = answers_of_engines(model, requests, [settings])
    return found


def answers_of_engines(
    model: Path, requests: Sequence[Request], engines: Sequence[Mapping[str, Any]]
) -> list[list[dict[str, Any]]]:
    """Return the answers of several engines, one after the other in one process."""
    degrees = ("tensor_parallel_size", "pipeline_parallel_size")
    is_split = any(one.get(name, 1) > 1 for one in engines for name in degrees)
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": str(int(is_split)), "PYTHONPATH": import_path(str(ROOT))}
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "asked.json"), Path(folder, "answered.json")
        asked.write_text(json.dumps([str(model), list(engines), list(requests)]))
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
    model, engines, requests = json.loads(Path(asked).read_text())
    found = [answers_in_this_process(Path(model), requests, **settings) for settings in engines]
    Path(answered).write_text(json.dumps(found))


def answers_in_this_process(
    model: Path, requests: Sequence[Request], **settings: Any
) -> list[dict[str, Any]]:
    """Return what `answers` does; vLLM changes torch in the process."""
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    from flagscale_testing.ahead import scheduler
    from vllm_flagscale.guidance.wiring import PROCESSOR

    settings = {**_SETTINGS, **settings}
    named = scheduler(settings["async_scheduling"])
    engine = LLM(model=str(model), **settings, scheduler_cls=named, logits_processors=[PROCESSOR])
    errors = [_refusal(engine, fields) for _, fields in requests]
    accepted = [request for request, error in zip(requests, errors, strict=True) if error is None]
    folders = sorted({fields["adapter"] for _, fields in accepted if "adapter" in fields})
    adapters = {folder: LoRARequest(folder, number, folder) for number, folder in enumerate(folders, 1)}
    outputs = iter(
        engine.generate(
            [{"prompt_token_ids": prompt} for prompt, _ in accepted],
            [_params(fields) for _, fields in accepted],
            lora_request=[adapters.get(fields.get("adapter")) for _, fields in accepted],
            use_tqdm=False,
        )
    )
    return [_answer(next(outputs)) if error is None else {"error": error} for error in errors]


def _params(fields: Mapping[str, Any]) -> Any:
    import msgspec
    from vllm import SamplingParams

    known = {name: value for name, value in fields.items() if name != "adapter"}
    return msgspec.convert(known, SamplingParams, str_keys=True)


def _refusal(engine: Any, fields: Mapping[str, Any]) -> str | None:
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
