"""Query a server on this host: `/health`, and `/metrics` in Prometheus text format."""

from __future__ import annotations

import ssl
import time
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException

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


def is_healthy(url: str) -> bool:
    """Return whether the server answers and reports that its engine is alive."""
    return _get(f"{url}/health") is not None


def load(url: str) -> Load | None:
    """Return the server's load; None if it does not report it."""
    text = _get(f"{url}/metrics")
    return parse_load(text, time.time()) if text is not None else None


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


def _get(url: str) -> str | None:
    """Return the body of a successful response; None for any other response, or if there is none."""
    # The server is on this host; its certificate is meant for its clients.
    context = ssl._create_unverified_context() if url.startswith("https:") else None
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),  # the user's proxy cannot reach this host's loopback
        *([urllib.request.HTTPSHandler(context=context)] if context else []),
    )
    try:
        with opener.open(url, timeout=_PATIENCE) as answer:
            body: bytes = answer.read()
            return body.decode(errors="replace")
    except (HTTPException, OSError, ValueError):
        return None
