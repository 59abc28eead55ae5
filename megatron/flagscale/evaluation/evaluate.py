"""Evaluate models: `python -m megatron.flagscale.evaluation.evaluate HARNESS-ARGUMENTS --output FOLDER`.

Takes the arguments of `lm-eval run`, and runs its tasks on one or several models. The results of a model, the
table of all models so far, and a picture if they are several, are written when a model is done.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flagscale.errors import Problem, UserError, first_line
from flagscale.files import write_atomic
from flagscale.run.failure import MISTAKE
from megatron.flagscale.evaluation.harness import call_arguments, run_parser, settings_of
from megatron.flagscale.evaluation.harness_log import counted_warnings
from megatron.flagscale.evaluation.models import (
    accept_cpu_build,
    huggingface_folder,
    models_of,
    register_aquila,
    tokenizer_of,
)
from megatron.flagscale.evaluation.picture import picture
from megatron.flagscale.evaluation.progress import Progress
from megatron.flagscale.evaluation.scores import Score, scores_of, table, to_json
from megatron.flagscale.evaluation.tasks import tasks_of

_OWN = ("pretrained", "tokenizer", "checkpoints", "iterations", "keep_converted", "output")

_RESULTS = ("results.json", "results.txt", "results.svg")
"""The files of the scores of all models, in the folder of the results."""
_MODELS = "models"
"""Beside them, the folder with one folder per model."""


def main(words: Sequence[str]) -> int:
    """Evaluate, and return the exit code: 0 if all is done, 2 for a user's mistake."""
    arguments = _parser().parse_args(words)
    output = Path(arguments.output)
    # Those of an earlier run would be taken for this one's.
    for name in _RESULTS:
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / _MODELS, ignore_errors=True)
    scores: list[Score] = []
    try:
        for found in _evaluated(arguments):
            scores += found
            _write(scores, output)
    except UserError as error:
        for message in error.messages:
            print(f"{MISTAKE}{'; '.join(map(str.strip, message.splitlines()))}", flush=True)
        return error.exit_code
    print(table(scores), end="", flush=True)
    print(f"flagscale: wrote {len(scores)} scores to {output}", flush=True)
    return 0


def _write(scores: Sequence[Score], output: Path) -> None:
    json_file, text_file, picture_file = (output / name for name in _RESULTS)
    write_atomic(json_file, _text(to_json(scores)))
    write_atomic(text_file, table(scores))
    if len({one.model for one in scores}) > 1:
        write_atomic(picture_file, picture(scores))


def _parser() -> argparse.ArgumentParser:
    parser = run_parser()
    parser.add_argument("--pretrained", help="folder or name of the model")
    parser.add_argument("--tokenizer", help="folder or name of its tokenizer")
    parser.add_argument("--checkpoints", nargs="+", default=[], help="folders to evaluate one after another")
    parser.add_argument("--iterations", nargs="+", default=[], help="of --checkpoints: `all`, or numbers")
    parser.add_argument("--keep-converted", action="store_true", help="keep the models that were converted")
    parser.add_argument("--output", required=True, help="folder of the results")
    return parser


def _evaluated(arguments: argparse.Namespace) -> Iterator[list[Score]]:
    """Yield the scores of one model after another.

    Raises:
        UserError: something that is given cannot be used.
    """
    output = Path(arguments.output)
    if arguments.tokenizer:
        arguments.model_args = {**(arguments.model_args or {}), "tokenizer": arguments.tokenizer}
    if arguments.model in (None, "hf"):
        # The harness's default is its name of the first NVIDIA device.
        arguments.device = arguments.device or _device()
    of_harness = {key: value for key, value in vars(arguments).items() if key not in _OWN}
    try:
        settings = settings_of(argparse.Namespace(**of_harness), str(output))
    except ValueError as error:
        raise UserError(str(error)) from None
    tasks, models = tasks_of(settings), models_of(arguments)
    progress, keep = Progress(len(models)), arguments.keep_converted
    for model in models:
        place = output / "converted" / model.name
        with (
            huggingface_folder(model, place, tokenizer_of(arguments), keep=keep) as folder,
            counted_warnings() as warnings,
        ):
            results = _results(settings, tasks, model.name, folder, progress)
        for warning, count in warnings.items():
            print(f"flagscale: {model.name}: {count} x {warning}", flush=True)
        samples = results.pop("samples", {})
        folder_of_model = output / _MODELS / model.name
        write_atomic(folder_of_model / "results.json", _text({**results, "warnings": warnings}))
        for task, lines in samples.items():
            records = "".join(_text(one, indent=None) for one in lines)
            write_atomic(folder_of_model / f"{task}.jsonl", records)
        yield [*scores_of(results, model.name, model.iteration)]


def _results(
    settings: Any, tasks: tuple[Any, list[str]], name: str, folder: str, progress: Progress
) -> dict[str, Any]:
    """Return what the harness reports of a model; `folder`: empty for a server, `tasks`: of `tasks_of`."""
    from lm_eval import simple_evaluate
    from lm_eval.api.registry import get_model

    manager, wanted = tasks
    args = {**settings.model_args, **({"pretrained": folder} if folder else {})}
    shared = {"batch_size": settings.batch_size, "max_batch_size": settings.max_batch_size}
    if settings.model == "hf":
        register_aquila()
        shared["device"] = settings.device
    elif settings.model == "vllm":
        accept_cpu_build()
    opened = get_model(settings.model).create_from_arg_obj(args, shared)
    progress.watch(opened, name)
    try:
        found = simple_evaluate(model=opened, tasks=wanted, task_manager=manager, **call_arguments(settings))
    except NotImplementedError as error:  # a chat server that is asked for probabilities
        raise UserError(
            [Problem(f"`{settings.model}` cannot run these tasks: {first_line(error)}")]
        ) from None
    finally:
        del opened
        gc.collect()
    found["config"] |= {"model": settings.model, "model_args": args, **shared}
    return dict(found)


def _device() -> str:
    """Return torch's name of the kind of device on which models run here."""
    import torch

    # Without the check, it is what torch was built for, whether or not there is such a device.
    found = torch.accelerator.current_accelerator(check_available=True)
    return str((found or torch.get_default_device()).type)


def _text(value: Any, indent: int | None = 1) -> str:
    from lm_eval.utils import handle_non_serializable

    return json.dumps(value, indent=indent, ensure_ascii=False, default=handle_non_serializable) + "\n"


if __name__ == "__main__":  # vLLM starts processes that import this module again
    # A stop then leaves through `finally`, which removes what was converted.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
