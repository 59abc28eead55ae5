"""The seam to lm-evaluation-harness 0.4.13: the parser of its command `lm-eval run`, and its settings.

The names with an underscore are the harness's own; `tests/worker/evaluation/` notices if they move.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any


def run_parser() -> argparse.ArgumentParser:
    """Return the harness's parser of `lm-eval run` (`lm_eval/_cli/run.py`)."""
    from lm_eval._cli.harness import HarnessCLI

    parser: argparse.ArgumentParser = HarnessCLI()._subparsers.choices["run"]
    return parser


def settings_of(arguments: argparse.Namespace, output: str) -> Any:
    """Return the harness's settings (`EvaluatorConfig`) for parsed arguments of its own.

    Raises:
        ValueError: values that the harness refuses together.
    """
    from lm_eval.config.evaluate_config import EvaluatorConfig

    # The harness wants a place for its own files before it keeps samples; nothing here writes there.
    return EvaluatorConfig.from_cli(argparse.Namespace(**{**vars(arguments), "output_path": output}))


def call_arguments(settings: Any) -> dict[str, Any]:
    """Return the settings as keyword arguments of `lm_eval.simple_evaluate`, without model and tasks."""
    passed: Mapping[str, Any] = {
        name: getattr(settings, name)
        for name in (
            *("num_fewshot", "limit", "samples", "write_out", "log_samples", "system_instruction"),
            *("apply_chat_template", "fewshot_as_multiturn", "gen_kwargs", "confirm_run_unsafe_code"),
            "metadata",
        )
    }
    names = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    return {**passed, **dict(zip(names, settings.seed or (None,) * len(names), strict=True))}
