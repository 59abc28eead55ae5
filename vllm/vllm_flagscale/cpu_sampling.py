"""vLLM's worker on the host's processors, without a fault of vLLM 0.32 with seeds (argument `worker_cls`)."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from vllm.v1.worker import cpu_worker


class SeededSampling(cpu_worker.CPUWorker):
    """A worker that never sets a generator back.

    vLLM 0.32 (`v1/worker/gpu_model_runner.py`, `_bookkeeping_sync`) does so with `Generator.set_offset` if it
    discards a sampled token. Only devices have this method: on CPU it raises, and the engine ends with all
    its requests. Here such a request draws nothing from its generator, so there is nothing to set back, and
    the answer does not depend on how its prompt is divided into steps. Remove it when vLLM no longer
    sets back generators on CPU.
    """

    def sample_tokens(self, grammar_output: Any) -> Any:
        if self.use_v2_model_runner:  # it has no generators
            return super().sample_tokens(grammar_output)
        runner = self.model_runner
        batch = runner.input_batch
        with spared(batch.generators, runner.discard_request_mask.np[: batch.num_reqs]):
            return super().sample_tokens(grammar_output)


@contextmanager
def spared(generators: MutableMapping[int, Any], is_discarded: np.ndarray) -> Iterator[None]:
    """Take the generators of the requests (by index) whose sampled token is discarded out of the batch."""
    held = {
        index: generators.pop(index)
        for index in map(int, np.flatnonzero(is_discarded))
        if index in generators
    }
    try:
        yield
    finally:
        generators.update(held)
