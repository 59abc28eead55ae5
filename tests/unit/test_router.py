"""Every path of the pinned vLLM that takes requests is passed on to one instance or refused, on purpose."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from vllm_flagscale.router import OF_ONE_SERVER

PASSED_ON = {
    *(
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/responses",
        "/v1/messages",
    ),
    *("/v1/embeddings", "/v2/embed", "/cohere/v2/chat", "/v1/systemone", "/inference/v1/generate"),
    *("/v1/audio/transcriptions", "/v1/audio/translations", "/generative_scoring", "/classify", "/pooling"),
    *("/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank", "/invocations", "/ping"),
    *("/tokenize", "/detokenize", "/v1/messages/count_tokens", "/is_scaling_elastic_ep"),
    *("/v1/completions/render", "/v1/chat/completions/render", "/v1/responses/render", "/v1/messages/render"),
    *("/v1/completions/derender", "/v1/chat/completions/derender", "/cohere/v2/chat/render"),
    "/v1/responses/{response_id}/cancel",  # that only one instance knows the response is documented
}


def test_every_path_that_takes_a_request_is_passed_on_or_refused_on_purpose() -> None:
    engine = find_spec("vllm")
    if engine is None or engine.origin is None:  # the folder `vllm` of this repository is no module
        pytest.skip("vLLM is not installed (make test installs it)")
    served = re.compile(r'router\.(?:(?:post|put|patch|delete)|add_api_route)\(\s*"([^"]+)"')
    sources = Path(engine.origin).with_name("entrypoints").rglob("*.py")
    paths = {path for source in sources for path in served.findall(source.read_text(encoding="utf-8"))}
    refused = {path for path in paths if path.endswith(OF_ONE_SERVER)}
    assert {one for one in OF_ONE_SERVER if not any(path.endswith(one) for path in refused)} == set()
    assert paths - refused == PASSED_ON
