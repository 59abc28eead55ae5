"""Random guided and ordinary requests under random trouble, compared with the same requests in calm.

python -m flagscale_testing.guidance_storm FOLDER --seed 7 --setting few_blocks
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flagscale_testing.ahead import scheduler
from flagscale_testing.played_scheduler import left_over

SETTINGS: dict[str, dict[str, Any]] = {
    "sync": {"async_scheduling": False},
    "async": {},
    "prefix_cache": {"enable_prefix_caching": True},
    "chunks": {"max_num_batched_tokens": 16, "max_num_seqs": 16},
    "chunks_sync": {"max_num_batched_tokens": 16, "max_num_seqs": 16, "async_scheduling": False},
    "two_places": {"max_num_seqs": 2},
    "three_places": {"max_num_seqs": 3, "async_scheduling": False, "enable_prefix_caching": True},
    "five_places": {"max_num_seqs": 5, "enable_prefix_caching": True},
    "few_blocks": {"num_gpu_blocks_override": 10},
    "few_blocks_cache": {"num_gpu_blocks_override": 16, "enable_prefix_caching": True},
    "few_blocks_sync": {
        "num_gpu_blocks_override": 12,
        "enable_prefix_caching": True,
        "async_scheduling": False,
    },
    "few_blocks_chunks": {
        "num_gpu_blocks_override": 14,
        "max_num_batched_tokens": 16,
        "max_num_seqs": 16,
        "enable_prefix_caching": True,
    },
    "priority": {"scheduling_policy": "priority", "max_num_seqs": 6},
    "priority_few_blocks": {"scheduling_policy": "priority", "num_gpu_blocks_override": 14},
    "priority_few_blocks_sync": {
        "scheduling_policy": "priority",
        "num_gpu_blocks_override": 14,
        "async_scheduling": False,
    },
}
"""Arguments of engines in which guidance is tried."""

_LENGTHS = (1, 1, 2, 3, 5, 16, 17, 32, 33, 34, 50, 60)


@dataclass(frozen=True)
class Ask:
    """A request, guided or not."""

    prompt: tuple[int, ...]
    sampling: dict[str, Any]
    priority: int
    is_guided: bool


@dataclass(frozen=True)
class Outcome:
    """What came of a storm."""

    answers: dict[int, list[Any]]
    """By the request's place, for those that were not aborted."""
    aborted: frozenset[int]
    steps: int
    preemptions: int
    seconds: float
    unanswered: tuple[int, ...] = ()

    def wrong(self, calm: Sequence[list[Any]]) -> list[int]:
        """Return the requests (places) whose answers differ from those in calm."""
        return [at for at, answer in self.answers.items() if answer != calm[at]]


@dataclass
class _Storm:
    """The state of one storm."""

    rng: random.Random
    waiting: list[int]
    running: set[int] = field(default_factory=set)
    aborted: set[int] = field(default_factory=set)
    answers: dict[int, list[Any]] = field(default_factory=dict)


def asks(count: int, seed: int, vocabulary: int = 640) -> list[Ask]:
    """Return random requests: two of three guided, greedy or with a seed, with every way to end."""
    rng = random.Random(seed)
    return [_ask(rng, vocabulary) for _ in range(count)]


def _ask(rng: random.Random, vocabulary: int) -> Ask:
    from vllm_flagscale.guidance.request import extra_args

    def prompt() -> list[int]:
        length = rng.choice(_LENGTHS)
        # Equal prompts hit the prefix cache.
        return [7] * length if rng.random() < 0.3 else [rng.randrange(3, vocabulary) for _ in range(length)]

    is_guided = rng.random() < 0.67
    sampling: dict[str, Any] = {"max_tokens": rng.choice([1, 2, 3, 10, 30, 40]), "temperature": 0.0}
    if rng.random() < 0.4:
        sampling["stop_token_ids"] = sorted(rng.sample(range(3, vocabulary), vocabulary // 16))
    elif rng.random() < 0.5:
        sampling["stop"] = [chr(rng.randrange(97, 123))]
    else:
        sampling["ignore_eos"] = True
    if is_guided:
        sampling["extra_args"] = extra_args(rng.choice([0.0, 0.5, 1.5, 3.0]), prompt())
        # An ordinary request with a seed ends vLLM 0.32 on CPU if its prompt is prefilled in chunks.
        if rng.random() < 0.6:
            sampling |= {
                "temperature": rng.choice([0.7, 1.0, 2.0]),
                "seed": rng.randrange(1 << 30),
                "top_k": rng.choice([0, 5, 50]),
                "top_p": rng.choice([1.0, 0.8]),
                "min_p": rng.choice([0.0, 0.05]),
                "n": rng.choice([1, 1, 2, 3]),
            }
    return Ask(tuple(prompt()), sampling, rng.randrange(3), is_guided)


def make_engine(folder: Path, **settings: Any) -> Any:
    """Return an engine in this process (vLLM's LLMEngine) that guides, in float32.

    It plans each step ahead of the tokens of the last one, unless `async_scheduling` is False.
    `VLLM_ENABLE_V1_MULTIPROCESSING=0` must be set before vLLM is imported.
    """
    from vllm import LLM

    from vllm_flagscale.guidance import wiring

    is_async = settings.get("async_scheduling", True)
    given: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 128,
        "enforce_eager": True,
        "max_num_seqs": 32,
        "seed": 0,
        "kv_cache_memory_bytes": 64 << 20,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "scheduler_cls": scheduler(is_async),
        "logits_processors": [wiring.PROCESSOR],
    }
    engine = LLM(model=str(folder), **{**given, **settings}).llm_engine
    assert (engine.engine_core.engine_core.batch_queue is not None) == is_async
    return engine


def scheduler_of(engine: Any) -> Any:
    """Return the scheduler of an engine in this process."""
    return engine.engine_core.engine_core.scheduler


def calm(engine: Any, requests: Sequence[Ask]) -> list[list[Any]]:
    """Return the answers of an engine that has room for all requests and is not disturbed."""
    for at, ask in enumerate(requests):
        _add(engine, f"calm-{at}", ask)
    answers: dict[int, list[Any]] = {}
    while len(answers) < len(requests):
        for output in engine.step():
            answers[int(output.request_id.removeprefix("calm-"))] = _answer(output)
    return [answers[at] for at in range(len(requests))]


def storm(
    engine: Any, requests: Sequence[Ask], seed: int, trouble: float = 1.0, limit: int = 20_000
) -> Outcome:
    """Send the requests at random times; abort some, reset the prefix cache, preempt all that run.

    `trouble` scales how often. Ends after `limit` steps with the requests that have no answer by then.
    """
    scheduler = scheduler_of(engine)
    rng = random.Random(seed)
    state = _Storm(rng, rng.sample(range(len(requests)), len(requests)))
    begin, steps, preemptions = time.monotonic(), 0, [0]
    preempt = scheduler._preempt_request

    def counted(*args: Any, **kwargs: Any) -> None:
        preemptions[0] += 1
        preempt(*args, **kwargs)

    scheduler._preempt_request = counted
    try:
        while (state.waiting or engine.has_unfinished_requests()) and steps < limit:
            _send_and_abort(engine, requests, state, trouble)
            if rng.random() < 0.01 * trouble:
                scheduler.reset_prefix_cache(reset_running_requests=rng.random() < 0.7)
            for output in engine.step():
                at = int(output.request_id.split("-")[1])
                state.answers[at] = _answer(output)
                state.running.discard(at)
            steps += 1
        for _ in range(3):  # the workers hear of what has ended
            engine.step()
    finally:
        del scheduler._preempt_request
    return Outcome(
        {at: answer for at, answer in state.answers.items() if at not in state.aborted},
        frozenset(state.aborted),
        steps,
        preemptions[0],
        time.monotonic() - begin,
        tuple(sorted({*range(len(requests))} - {*state.answers} - state.aborted)),
    )


def _send_and_abort(engine: Any, requests: Sequence[Ask], state: _Storm, trouble: float) -> None:
    while state.waiting and state.rng.random() < 0.6:
        at = state.waiting.pop()
        _add(engine, f"storm-{at}", requests[at])
        state.running.add(at)
    if state.running and state.rng.random() < 0.03 * trouble:
        at = state.rng.choice(sorted(state.running))
        engine.abort_request([f"storm-{at}"])
        state.running.discard(at)
        state.aborted.add(at)


def _add(engine: Any, name: str, ask: Ask) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **ask.sampling)
    engine.add_request(name, {"prompt_token_ids": list(ask.prompt)}, params, priority=ask.priority)


def _answer(output: Any) -> list[Any]:
    return [(list(one.token_ids), one.finish_reason, one.stop_reason) for one in output.outputs]


def remains(engine: Any) -> list[str]:
    """Return what is left in the scheduler and the worker of an engine that has answered everything."""
    worker = engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    rows = {
        "requests of the worker": worker.requests,
        "rows of the worker": worker.input_batch.req_id_to_index,
    }
    return left_over(scheduler_of(engine)) + [f"{name}: {len(left)}" for name, left in rows.items() if left]


def close(engine: Any) -> None:
    """End an engine in this process, and give its memory back."""
    engine.engine_core.shutdown()


def report(name: str, outcome: Outcome, expected: Sequence[list[Any]], left: Sequence[str]) -> str:
    """Return one line about a storm; it ends in `ok` if every request that was not aborted has its answer."""
    wrong = outcome.wrong(expected)
    troubles = {"without answer": outcome.unanswered, "wrong": wrong, "left": left}
    verdict = "; ".join(f"{what}: {found}" for what, found in troubles.items() if found) or "ok"
    return (
        f"{name}: {len(outcome.answers) - len(wrong)} of {len(outcome.answers)} equal, "
        f"{len(outcome.aborted)} aborted, {outcome.preemptions} preemptions, {outcome.steps} steps, "
        f"{outcome.seconds:.0f} s; {verdict}"
    )


def main() -> int:
    """Print one line per setting; return 1 if a request got a wrong answer or none, or something is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="a model; a random one is made if the folder does not exist"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100, help="requests per setting")
    parser.add_argument("--setting", action="append", choices=sorted(SETTINGS), help="default: all")
    arguments = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if not arguments.folder.exists():
        from flagscale_testing.guided import make_llama

        make_llama(arguments.folder)
    requests = asks(arguments.count, arguments.seed)
    engine = make_engine(arguments.folder, async_scheduling=False)
    expected = calm(engine, requests)
    close(engine)
    lines = []
    for name in arguments.setting or SETTINGS:
        engine = make_engine(arguments.folder, **SETTINGS[name])
        outcome = storm(engine, requests, arguments.seed)
        lines.append(report(name, outcome, expected, remains(engine)))
        print(lines[-1], flush=True)
        close(engine)
    return 0 if all(line.endswith("; ok") for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
