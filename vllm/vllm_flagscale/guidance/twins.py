"""A guided request and its twin, as the scheduler sees them."""

from __future__ import annotations

import secrets
from copy import copy
from dataclasses import dataclass
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request, RequestStatus

from vllm_flagscale.guidance.request import NEGATIVE, ROW, SCALE, Row

_SUFFIX = "!twin"


@dataclass(frozen=True)
class Guided:
    """A guided request and its twin: two requests of the scheduler that generate the same tokens."""

    request: Any
    twin: Any

    @property
    def name(self) -> str:
        """The id of the request."""
        return str(self.request.request_id)

    @property
    def both(self) -> tuple[Any, Any]:
        return self.request, self.twin

    def partner(self, request: Any) -> Any:
        """Return the twin of the request, or the request of the twin."""
        return self.twin if request is self.request else self.request

    @property
    def is_half_admitted(self) -> bool:
        """Whether one of the two runs and the other one waits."""
        return [one.status for one in self.both].count(RequestStatus.RUNNING) == 1

    @property
    def can_sample(self) -> bool:
        """Whether both run, and have one token left to compute before their next token is drawn."""
        return all(one.status == RequestStatus.RUNNING and tokens_left(one) == 1 for one in self.both)

    @property
    def differs(self) -> bool:
        """Whether the two have generated different tokens, judged by their number and the last one."""
        one, other = (both.output_token_ids for both in self.both)
        return len(one) != len(other) or bool(one and one[-1] != other[-1])


def tokens_left(request: Any) -> int:
    """Return how many tokens a request has to compute before its next token is drawn."""
    return int(request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens)


def is_single(request: Any) -> bool:
    """Return whether a waiting request has one token: it samples in the step that admits it."""
    return int(request.num_tokens) == 1


def guide(request: Any, most_tokens: int) -> Guided:
    """Return the guided request with its twin; `request` takes the parameters of a row.

    Neither generates more than `most_tokens`.
    """
    params = request.sampling_params
    request.max_tokens = min(request.max_tokens, most_tokens)
    seed = params.seed if params.seed is not None else secrets.randbits(62)
    sampling = {name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    row = Row(request.request_id, False, float(params.extra_args[SCALE]), seed, **sampling)
    negative = params.extra_args[NEGATIVE]
    request.sampling_params = _drawn_elsewhere(params, row)
    return Guided(request, _twin(request, negative, row))


def _twin(request: Any, negative: list[int], row: Row) -> Any:
    twin = Request(
        request_id=f"{request.request_id}{_SUFFIX}",
        prompt_token_ids=list(negative),
        sampling_params=SamplingParams(
            temperature=0.0,
            max_tokens=request.max_tokens,
            ignore_eos=True,
            detokenize=False,
            logit_bias=request.sampling_params.logit_bias,
            extra_args={
                **request.sampling_params.extra_args,
                ROW: Row(row.request_id, True, row.scale, row.seed),
            },
        ),
        pooling_params=None,
        client_index=request.client_index,
        arrival_time=request.arrival_time,
        lora_request=request.lora_request,
        cache_salt=request.cache_salt,
        priority=request.priority,
        block_hasher=request._block_hasher,
    )
    twin.prefill_stats = None  # the user sent one prompt
    return twin


def _drawn_elsewhere(params: Any, row: Row) -> Any:
    """Return the parameters for the worker, which only has to take the token that the processor forces."""
    worker = copy(params)
    worker.__dict__.pop("sampling_type", None)  # derived from the temperature
    worker.seed, worker.temperature, worker.top_k, worker.top_p, worker.min_p = None, 0.0, 0, 1.0, 0.0
    worker.extra_args = {**{k: v for k, v in params.extra_args.items() if k != NEGATIVE}, ROW: row}
    return worker
