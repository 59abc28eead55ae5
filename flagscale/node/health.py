"""Query a server on this host: `/health`, and `/metrics` in Prometheus text format."""

from __future__ import annotations

import ssl
import time
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from urllib.error import HTTPError

from prometheus_client.parser import text_string_to_metric_families

_PATIENCE = 5.0
_GAUGES = {"vllm:num_requests_running": "running", "vllm:num_requests_waiting": "waiting"}
_COUNTERS = {"vllm:generation_tokens_total": "generated", "vllm:prompt_tokens_total": "prompted"}


@dataclass(frozen=True)
class Load:
    """The load of a server: current requests, and tokens since it started."""

    running: int
    waiting: int
    generated: float
    prompted: float
    time: float


def check(url: str, patience: float = _PATIENCE) -> int | None:
    """Return the HTTP status of `/health`: 200 if the engine is alive; None if there is no answer in time."""
    status, _ = _get(f"{url}/health", patience)
    return status


def load(url: str) -> Load | None:
    """Return the server's load; None if it does not report it."""
    status, text = _get(f"{url}/metrics", _PATIENCE)
    return parse_load(text, time.time()) if status == HTTPStatus.OK else None


def parse_load(text: str, now: float) -> Load:
    """Sum up the metrics of all engines behind one server."""
    names = (*_GAUGES, *_COUNTERS)
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(names)) + "\n"
    sums = dict.fromkeys((*_GAUGES.values(), *_COUNTERS.values()), 0.0)
    for family in text_string_to_metric_families(wanted):
        for sample in family.samples:
            meaning = _GAUGES.get(sample.name) or _COUNTERS.get(sample.name)
            if meaning:
                sums[meaning] += sample.value
    return Load(int(sums["running"]), int(sums["waiting"]), sums["generated"], sums["prompted"], now)


def _get(url: str, patience: float) -> tuple[int | None, str]:
    """Return the status, None if there is no response, and the body of a successful response."""
    # The server is on this host; its certificate is meant for its clients.
    context = ssl._create_unverified_context() if url.startswith("https:") else None
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),  # the user's proxy cannot reach this host's loopback
        *([urllib.request.HTTPSHandler(context=context)] if context else []),
    )
    try:
        with opener.open(url, timeout=patience) as answer:
            body: bytes = answer.read()
            return answer.status, body.decode(errors="replace")
    except HTTPError as error:
        return error.code, ""
    except (HTTPException, OSError, ValueError):
        return None, ""
