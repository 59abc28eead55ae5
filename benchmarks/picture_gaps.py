"""How long streams wait for a token while pictures are decoded: `python -m benchmarks.picture_gaps URL`.

`URL` is that of a running server of Emu3, with `/v1`. Prints the gaps between the events of 4 streams alone,
and beside 3 pictures that are drawn and decoded one after the other, in milliseconds.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Sequence

import httpx

STREAMS, PICTURES, CALM = 4, 3, 8.0
"""Numbers of each, and the seconds for which the streams run alone."""


class Stream(threading.Thread):
    """A client that asks for one text after the other and remembers when events came."""

    def __init__(self, url: str, model: str) -> None:
        super().__init__()
        self._url, self._model = url, model
        self.is_stopping = False
        self.gaps: list[tuple[float, float]] = []
        """(when it ended, its seconds) of each gap between two events of one text."""

    def run(self) -> None:
        body = {
            "model": self._model,
            "prompt": "a cat",
            "max_tokens": 200,
            "ignore_eos": True,
            "stream": True,
        }
        while not self.is_stopping:
            with httpx.stream("POST", f"{self._url}/completions", json=body, timeout=600) as answer:
                answer.raise_for_status()
                before = 0.0
                for line in answer.iter_lines():
                    now = time.perf_counter()
                    if line and before:
                        self.gaps.append((now, now - before))
                    before = now if line else before
                    if self.is_stopping:
                        break


def shown(gaps: Sequence[float]) -> str:
    """Return the median, the value below which 99 of 100 are, and the longest, of gaps in seconds."""
    ordered = sorted(gaps)
    chosen = statistics.median(ordered), ordered[int(0.99 * len(ordered))], ordered[-1]
    return "  ".join(f"{1000 * one:7.0f}" for one in chosen)


def main() -> None:
    (url,) = sys.argv[1:]
    model = httpx.get(f"{url}/models", timeout=60).json()["data"][0]["id"]
    streams = [Stream(url, model) for _ in range(STREAMS)]
    for one in streams:
        one.start()
    time.sleep(CALM)
    begun = time.perf_counter()
    for seed in range(PICTURES):
        body = {"prompt": "a cat", "seed": seed, "size": "1:1"}
        httpx.post(f"{url}/images/generations", json=body, timeout=600).raise_for_status()
    for one in streams:
        one.is_stopping = True
    for one in streams:
        one.join()
    gaps = [gap for one in streams for gap in one.gaps]
    print("milliseconds          median  99 of 100  longest")
    print(f"streams alone        {shown([seconds for ended, seconds in gaps if ended < begun])}")
    print(f"beside pictures      {shown([seconds for ended, seconds in gaps if ended >= begun])}")


if __name__ == "__main__":
    main()
