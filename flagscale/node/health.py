"""Query a server on this host: `/health`, and `/metrics` in Prometheus text format."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

_PATIENCE = 5.0
_GAUGES = {"vllm:num_requests_running": "running", "vllm:num_requests_waiting": "waiting"}
_DECODING = "flagscale:pictures_decoding"
"""Requests of a server of ours for pictures that the engine has drawn, and that are being decoded."""
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
    status, _ = _get(url, "/health", patience)
    return status


def load(url: str) -> Load | None:
    """Return the server's load; None if it does not report it."""
    status, text = _get(url, "/metrics", _PATIENCE)
    return parse_load(text, time.time()) if status == HTTPStatus.OK else None


def parse_load(text: str, now: float) -> Load | None:
    """Sum up the metrics of all engines behind one server; None if its requests are not among them."""
    meanings = {**_GAUGES, **_COUNTERS, _DECODING: _DECODING}
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(tuple(meanings))) + "\n"
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(wanted):
        for sample in family.samples:
            meaning = meanings.get(sample.name)
            if meaning:
                sums[meaning] = sums.get(meaning, 0.0) + sample.value
    if not sums.keys() >= set(_GAUGES.values()):  # vLLM does not report them with `disable_log_stats`
        return None
    running, waiting = int(sums["running"] + sums.get(_DECODING, 0.0)), int(sums["waiting"])
    return Load(running, waiting, sums.get("generated", 0.0), sums.get("prompted", 0.0), now)


def _get(url: str, path: str, patience: float) -> tuple[int | None, str]:
    """Return the status, None if there is no response, and the body of the response."""
    place = urlsplit(url)
    # `urllib.request` would load all trusted certificates each time, and use the user's proxy, which cannot
    # reach this host's loopback.
    connection = (
        HTTPSConnection(place.hostname or "", place.port, timeout=patience, context=_any_certificate())
        if place.scheme == "https"
        else HTTPConnection(place.hostname or "", place.port, timeout=patience)
    )
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (HTTPException, OSError, ValueError):
        return None, ""
    finally:
        connection.close()


@cache
def _any_certificate() -> ssl.SSLContext:
    """Return a context for a server on this host, whose certificate is meant for its clients."""
    return ssl._create_unverified_context()
