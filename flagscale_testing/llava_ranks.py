"""Logits of small models with pictures on several ranks, against those of transformers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from flagscale_testing.llava_cases import (
    CASES,
    GRADIENTS,
    MODELS,
    Batch,
    batch,
    difference,
    expected_gradients,
    expected_logits,
    of_transformers,
    probe,
)
from flagscale_testing.llava_models import WIDTH, load, matched


def main(argv: Sequence[str]) -> None:
    """Write the largest differences of each case, as JSON by name, to the file that the first argument names.

    The first is that of the logits, the second that of a weight's gradient, relative to its norm, or None if
    it is not compared. The degrees are the engine's; sequence parallelism comes with `--sp`.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--metrics-file")
    parser.add_argument("--sp", action="store_true")
    for degree in ("tp", "pp", "cp"):
        parser.add_argument(f"--{degree}", type=int, default=1)
    args = parser.parse_args(argv)
    degrees = {
        "tensor_model_parallel_size": args.tp,
        "pipeline_model_parallel_size": args.pp,
        "context_parallel_size": args.cp,
    }
    _initialize(degrees)
    found: dict[str, tuple[float, float | None]] = {}
    for model in MODELS:
        gpt = _build(model, **degrees, sequence_parallel=args.sp)
        for case in (case for case in CASES if CASES[case][0] == model):
            given = batch(case, multiple=2 * args.tp * args.cp)
            with torch.no_grad():
                logits = _logits(gpt, given)
            if logits is not None:
                error = difference(logits, expected_logits(case, given).detach(), given.kept)
                is_compared = case in GRADIENTS and args.pp == 1
                found[case] = error, _error_of_gradients(gpt, case, given) if is_compared else None
    if dist.get_rank() == dist.get_world_size() - 1:
        args.file.write_text(json.dumps(found))
    dist.barrier()


def _initialize(degrees: dict[str, int]) -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(**degrees)
    model_parallel_cuda_manual_seed(1)


def _build(model: str, **settings: Any) -> torch.nn.Module:
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron.flagscale.vision.builder import LlavaBuilder

    config = MODELS[model].config(**settings, pipeline_dtype=torch.float32)
    gpt: torch.nn.Module = LlavaBuilder(config).build_model(ProcessGroupCollection.use_mpu_process_groups())
    load(gpt, of_transformers(model).state_dict(), MODELS[model])
    return gpt


def _logits(gpt: torch.nn.Module, given: Batch) -> torch.Tensor | None:
    """Return the logits of a whole micro-batch on the last stage, None on the others."""
    from megatron.core import parallel_state

    groups = gpt.pg_collection
    if not gpt.pre_process:
        length = given.tokens.size(1) // groups.cp.size()
        length //= groups.tp.size() if gpt.config.sequence_parallel else 1
        hidden = torch.empty(length, len(given.tokens), WIDTH)
        dist.recv(hidden, parallel_state.get_pipeline_model_parallel_prev_rank())
        gpt.set_input_tensor(hidden)
    media = {"media": given.media} if gpt.pre_process else {}
    output = gpt(given.tokens, given.positions, None, **media)
    if not gpt.post_process:
        dist.send(output, parallel_state.get_pipeline_model_parallel_next_rank())
        return None
    return _in_order(torch.cat(_gathered(output, groups.tp), -1), groups.cp)


def _error_of_gradients(gpt: torch.nn.Module, case: str, given: Batch) -> float:
    """Return the largest difference of a weight's gradient, on any rank, relative to its norm."""
    groups = gpt.pg_collection
    gpt.zero_grad()
    own = probe(given).chunk(groups.tp.size(), -1)[groups.tp.rank()]
    chunks = own.chunk(2 * groups.cp.size(), 1)
    own = torch.cat([chunks[groups.cp.rank()], chunks[-1 - groups.cp.rank()]], 1)
    (gpt(given.tokens, given.positions, None, media=given.media) * own).sum().backward()
    largest = torch.zeros(())
    for name, parameter, expected in matched(gpt, expected_gradients(case, given), MODELS[CASES[case][0]]):
        assert parameter.grad is not None, name
        # What the trainer does with them (`finalize_model_grads`).
        dist.all_reduce(parameter.grad, group=groups.cp)
        if getattr(parameter, "sequence_parallel", False):
            dist.all_reduce(parameter.grad, group=groups.tp)
        largest = torch.maximum(largest, (parameter.grad - expected).norm() / expected.norm())
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return float(largest)


def _in_order(logits: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Return the logits `[b, s, vocabulary]` of a sequence whose parts a context parallel group holds."""
    if group.size() == 1:
        return logits
    first, last = zip(*(part.chunk(2, 1) for part in _gathered(logits, group)), strict=True)
    return torch.cat([*first, *reversed(last)], 1)


def _gathered(part: torch.Tensor, group: dist.ProcessGroup) -> list[torch.Tensor]:
    parts = [torch.empty_like(part) for _ in range(group.size())]
    dist.all_gather(parts, part.contiguous(), group=group)
    return parts
