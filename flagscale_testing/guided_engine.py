"""An engine that guides, in a process of its own: `answers` starts it, gives it requests, and ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flagscale.run.env import import_path
from flagscale_testing.guided import Case
from flagscale_testing.ranks.training import ROOT

_ANSWERS = "answers: "


@dataclass(frozen=True)
class Asked:
    """A request as the engine gets it; with scale 1, it is an ordinary one."""

    case: Case
    adapter: Path | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


def answers(folder: Path, requests: Sequence[Asked], **engine: Any) -> list[list[list[int]]]:
    """Return the tokens of each answer (`n` of them per request), all requests given at once.

    `engine` holds arguments of vLLM's engine; the model computes in float32. Unless `sampling` says
    otherwise, a request is greedy and takes 16 tokens.

    Raises:
        RuntimeError: the engine ended; with its output.
    """
    ranks = engine.get("tensor_parallel_size", 1) * engine.get("pipeline_parallel_size", 1)
    given = {
        "folder": str(folder),
        "engine": engine,
        "requests": [{**asdict(one), "adapter": one.adapter and str(one.adapter)} for one in requests],
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "flagscale_testing.guided_engine"],
        input=json.dumps(given),
        env={
            **os.environ,
            "PYTHONPATH": import_path(str(ROOT)),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(ranks > 1)),
            "VLLM_LOGGING_LEVEL": "WARNING",
            "CUDA_VISIBLE_DEVICES": "",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    for line in done.stdout.splitlines():
        if line.startswith(_ANSWERS):
            return list(json.loads(line.removeprefix(_ANSWERS)))
    raise RuntimeError(f"{done.stdout[-4000:]}{done.stderr[-8000:]}")


def main() -> None:
    """Read what to do from standard input, and print the answers."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import StructuredOutputsParams

    from vllm_flagscale.guidance.request import extra_args
    from vllm_flagscale.guidance.wiring import PROCESSOR, SCHEDULER

    given = json.load(sys.stdin)
    requests = given["requests"]
    adapters = sorted({one["adapter"] for one in requests if one["adapter"]})

    def params(one: Mapping[str, Any]) -> Any:
        values = {"temperature": 0, "max_tokens": 16, "ignore_eos": True, "detokenize": False} | one[
            "sampling"
        ]
        if constraint := values.pop("structured_outputs", None):
            values["structured_outputs"] = StructuredOutputsParams(**constraint)
        return SamplingParams(**values, extra_args=extra_args(one["case"]["scale"], one["case"]["negative"]))

    engine = {"dtype": "float32", "max_model_len": 256, "enforce_eager": True, "max_num_seqs": 8, "seed": 0}
    llm = LLM(
        model=given["folder"],
        scheduler_cls=SCHEDULER,
        logits_processors=[PROCESSOR],
        **engine | given["engine"],
    )
    outputs = llm.generate(
        [{"prompt_token_ids": one["case"]["prompt"]} for one in requests],
        [params(one) for one in requests],
        lora_request=[
            LoRARequest(Path(one["adapter"]).name, adapters.index(one["adapter"]) + 1, one["adapter"])
            if one["adapter"]
            else None
            for one in requests
        ],
        use_tqdm=False,
    )
    found = [[list(answer.token_ids) for answer in output.outputs] for output in outputs]
    print(f"{_ANSWERS}{json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
