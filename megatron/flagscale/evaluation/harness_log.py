"""The harness's warnings, counted: most of them, such as one per shortened text, are lost in a long log."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGER = "lm_eval"
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class _Counting(logging.Handler):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__(logging.WARNING)
        self._counts = counts

    def emit(self, record: logging.LogRecord) -> None:
        self._counts[_NUMBER.sub("N", " ".join(record.getMessage().split()))] += 1


@contextmanager
def counted_warnings() -> Iterator[Counter[str]]:
    """Yield how often the harness gave each warning meanwhile; numbers in a warning are written as N."""
    counts: Counter[str] = Counter()
    handler = _Counting(counts)
    logger = logging.getLogger(_LOGGER)
    logger.addHandler(handler)
    try:
        yield counts
    finally:
        logger.removeHandler(handler)
