"""Report the fields of requests that vLLM ignores: `max_new_tokens` instead of `max_tokens`, say.

vLLM 0.32 accepts every field, as OpenAI's servers do, and mentions those that it does not know only in its
log for debugging (`entrypoints/serve/engine/protocol.py`).
"""

from __future__ import annotations

import logging
from typing import Any, cast

MIDDLEWARE = f"{__name__}.ReportIgnoredFields"
"""A value of the server's argument `middleware`."""
LOGGER = "vllm.entrypoints.serve.engine.protocol"
_MESSAGE = "The following fields were present in the request but ignored: %s"


class ReportIgnoredFields:
    """A middleware that does nothing to requests: it is made after vLLM has configured its log."""

    def __init__(self, app: Any) -> None:
        self._app = app
        report_ignored_fields()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)


def report_ignored_fields() -> None:
    """Make that message a warning, once per field; safe to repeat."""
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(one, _Ignored) for one in logger.filters):
        logger.addFilter(_Ignored(logger.isEnabledFor(logging.DEBUG)))
    logger.setLevel(logging.DEBUG)


class _Ignored(logging.Filter):
    """Lets warnings and the first message about each field pass, and other messages only if `is_debug`."""

    def __init__(self, is_debug: bool) -> None:
        super().__init__()
        self._is_debug = is_debug
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.DEBUG:
            return True
        if record.msg != _MESSAGE or not isinstance(record.args, tuple):
            return self._is_debug
        fields = {str(field) for field in cast(set[str], record.args[0])}
        new = fields - self._seen
        # A client that invents names must not fill the memory.
        if len(self._seen) < 1000:
            self._seen |= fields
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return bool(new)
