"""`POST /v1/images/generations`: OpenAI's way to ask for pictures, answered by Emu3.

The route is attached by a middleware, which every server of ours has. vLLM's own seam for routes, the entry
points `vllm.endpoint_plugins`, loads nothing unless `VLLM_PLUGINS` names it, and that variable is an
allow-list for all plugins: to set it for a user, we would have to know the name of each plugin that the user
has, of models and of chips, and a list that misses one turns it off without an error. The argument
`middleware` only adds. A middleware sees the application before the first request, and a route that is
attached then is behind the API key, the error handlers and the metrics of vLLM, as its own routes are.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import Gauge
from pydantic import BaseModel, ConfigDict
from vllm.entrypoints.generate.base.protocol import RequestResponseMetadata
from vllm.entrypoints.generate.base.serving import GenerateBaseServing
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import load_aware_call, validate_json_request, with_cancellation
from vllm.entrypoints.serve.utils.request_logger import RequestLogger
from vllm.inputs import tokens_input
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.transformers_utils.processor import cached_image_processor_from_config

from flagscale.checks.emu3 import grid_of, image_area
from vllm_flagscale.emu3.background import decoded
from vllm_flagscale.emu3.finishing import Begun, finish_before_shutdown
from vllm_flagscale.emu3.image_fields import Asked, FieldError, read
from vllm_flagscale.emu3.prompts import PictureRequest, picture_request

PATH = "/v1/images/generations"
_KINDS = {
    HTTPStatus.BAD_REQUEST: "BadRequestError",
    HTTPStatus.NOT_FOUND: "NotFoundError",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailableError",
}
"""What vLLM calls errors of these kinds."""
_DECODING = Gauge(
    "flagscale:pictures_decoding",
    "Requests for pictures that are drawn and being decoded.",
    multiprocess_mode="livesum",  # of all API server processes
)
"""The engine counts these requests as finished; the launcher must not take the server for idle."""
_log = init_logger("vllm.flagscale.emu3")


class AttachImages:
    """A middleware that attaches the route when the application starts, and passes everything on."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            attach(scope["app"])
        await self._app(scope, receive, send)


def attach(app: FastAPI) -> None:
    """Add the route to vLLM's application, unless another plugin has done so."""
    if any(getattr(route, "path", "") == PATH for route in app.routes):
        _log.info("%s belongs to another plugin", PATH)
        return
    state = app.state
    is_emu3 = state.engine_client.model_config.hf_config.model_type == "emu3"
    state.flagscale_images = Images(state) if is_emu3 else None
    app.post(PATH, dependencies=[Depends(validate_json_request)])(create_images)


@with_cancellation
@load_aware_call
async def create_images(body: Annotated[dict[str, Any], Body()], raw_request: Request) -> JSONResponse:
    """Answer one request. A client that closes its connection ends it: the engine's requests are aborted."""
    images: Images | None = raw_request.app.state.flagscale_images
    if images is None:
        answer: Any = _refusal("the model draws no pictures: this needs Emu3", HTTPStatus.NOT_FOUND)
    else:
        answer = await images.create(body, raw_request)
    if isinstance(answer, ErrorResponse):
        return JSONResponse(answer.model_dump(), status_code=answer.error.code)
    return JSONResponse(answer)


def _refusal(what: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST, field: str | None = None) -> Any:
    return GenerateBaseServing.create_error_response(what, _KINDS[status], status, field)


class _Named(BaseModel):
    """A body in the form in which vLLM checks the name of the model and logs requests."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None


class Images(GenerateBaseServing):
    """What answers requests for pictures, beside vLLM's classes for chats and completions."""

    def __init__(self, state: Any) -> None:
        arguments = state.args
        logger = RequestLogger(max_log_len=arguments.max_log_len) if arguments.enable_log_requests else None
        super().__init__(state.engine_client, state.openai_serving_models, request_logger=logger)
        self._area = image_area(cached_image_processor_from_config(self.model_config).to_dict())
        self._begun = Begun()
        finish_before_shutdown(self.engine_client, self._begun)

    async def create(self, body: dict[str, Any], raw_request: Request) -> dict[str, Any] | ErrorResponse:
        """Return the answer's body; a mistake in the request is an error of status 400, or 404.

        Raises:
            GenerationError: the engine or the decoder failed: status 500.
        """
        try:
            asked = read(body)
            wanted = self._wanted(asked)
        except FieldError as error:
            return _refusal(str(error), field=error.field)
        named = _Named.model_validate(body)
        if wrong := await self._check_model(named):
            return wrong
        if self._begun.is_stopping:
            return _refusal("the server is stopping", HTTPStatus.SERVICE_UNAVAILABLE)
        self._preflight(asked.n)
        with self._begun.one():
            return await self._drawn(asked, wanted, self._maybe_get_adapters(named), raw_request)

    def _wanted(self, asked: Asked) -> PictureRequest:
        """Return what the engine is given. Raises FieldError if it cannot draw this."""
        try:
            grid = grid_of(asked.size or "1:1", self._area)
        except ValueError as error:
            raise FieldError([("size", str(error))]) from None
        most, tokenizer = self.model_config.max_model_len, self.renderer.tokenizer
        try:
            return picture_request(tokenizer, asked.prompt, grid, most, **asked.guidance)
        except ValueError as error:
            raise FieldError([("prompt", str(error))]) from None

    async def _drawn(
        self, asked: Asked, wanted: PictureRequest, lora: LoRARequest | None, raw_request: Request
    ) -> dict[str, Any]:
        seed = secrets.randbits(53) if asked.seed is None else asked.seed
        params = wanted.sampling(
            n=asked.n, seed=seed, output_kind=RequestOutputKind.FINAL_ONLY, **asked.sampling
        )
        request_id = f"img-{self._base_request_id(raw_request)}"
        raw_request.state.request_metadata = RequestResponseMetadata(request_id=request_id)
        prompt = tokens_input(list(wanted.prompt), prompt=asked.prompt)
        self._log_inputs(request_id, prompt, params, lora)
        answers = self.engine_client.generate(
            prompt,
            params,
            request_id,
            lora_request=lora,
            trace_headers=await self._get_trace_headers(raw_request.headers),
            data_parallel_rank=self._get_data_parallel_rank(raw_request),
        )
        (result,) = [one async for one in answers]
        for one in result.outputs:
            self._raise_if_error(one.finish_reason, request_id)
        sides = [wanted.grid.height, wanted.grid.width]
        with _DECODING.track_inprogress():
            pictures = await asyncio.gather(
                *(decoded(self.engine_client, one.token_ids, sides) for one in result.outputs)
            )
        return {
            "created": int(time.time()),
            "data": [
                # vLLM draws the picture of this number with this seed (`v1/engine/parallel_sampling.py`).
                {"b64_json": base64.b64encode(png).decode(), "seed": seed + number}
                for number, png in enumerate(pictures)
            ],
            "size": wanted.grid.size,
            "output_format": "png",
            "background": "opaque",
            "usage": _usage(len(wanted.prompt), asked.n * wanted.grid.tokens),
        }


def _usage(prompt: int, pictures: int) -> dict[str, Any]:
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"text_tokens": prompt, "image_tokens": 0},
        "output_tokens": pictures,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": pictures},
        "total_tokens": prompt + pictures,
    }
