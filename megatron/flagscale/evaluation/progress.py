"""The progress of an evaluation, counted where the harness reports each answer of a model."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flagscale.files import write_atomic
from flagscale.run.env import PROGRESS_FILE

_KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
"""The methods by which the harness asks a model."""
_SECONDS = 0.5
"""Between two reports."""


class Progress:
    """Counts the answers of one model after another; `query` shows the newest count.

    The harness calls `add_partial` of a model's cache hook for each answer (0.4.13, `lm_eval/api/model.py`).
    """

    def __init__(self, models: int) -> None:
        self._models, self._number, self._unit = models, 0, "requests"
        self._done, self._total, self._written = 0, 0, 0.0

    def watch(self, model: Any, name: str) -> None:
        """Count the answers of a further model (`lm_eval.api.model.LM`) from now on."""
        self._number += 1
        self._done, self._total = 0, 0
        if self._models > 1:
            self._unit = f"requests ({name}, model {self._number} of {self._models})"
        model.set_cache_hook(self)
        for kind in _KINDS:
            setattr(model, kind, self._counting(getattr(model, kind)))
        self._report(is_due=True)

    def add_partial(self, kind: str, request: object, answer: object) -> None:
        """Count an answer."""
        self._done = min(self._done + 1, self._total)
        self._report(is_due=self._done == self._total)

    def _counting(self, answer: Callable[[Sequence[Any]], Any]) -> Callable[[Sequence[Any]], Any]:
        def counted(requests: Sequence[Any]) -> Any:
            before = self._total
            self._total += len(requests)
            self._report(is_due=True)
            answers = answer(requests)
            self._done = before + len(requests)
            self._report(is_due=True)
            return answers

        return counted

    def _report(self, is_due: bool) -> None:
        path, now = os.environ.get(PROGRESS_FILE), time.monotonic()
        if not path or (not is_due and now < self._written + _SECONDS):
            return
        self._written = now
        record = {"done": self._done, "total": self._total, "unit": self._unit, "tokens_per_s": None}
        write_atomic(Path(path), json.dumps(record))
