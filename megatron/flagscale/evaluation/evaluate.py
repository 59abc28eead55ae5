"""Evaluate models: `python -m megatron.flagscale.evaluation.evaluate HARNESS-ARGUMENTS --output FOLDER`.

Takes the arguments of `lm-eval run`, and runs its tasks on one or several models. Each model's results are
written when they are known; the table of all, and a picture if there are several models, at the end.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flagscale.errors import Problem, UserError, first_line
from flagscale.files import write_atomic
from flagscale.run.failure import MISTAKE
from megatron.flagscale.evaluation.harness import call_arguments, run_parser, settings_of
from megatron.flagscale.evaluation.harness_log import counted_warnings
from megatron.flagscale.evaluation.models import huggingface_folder, models_of, register_aquila
from megatron.flagscale.evaluation.picture import picture
from megatron.flagscale.evaluation.progress import Progress
from megatron.flagscale.evaluation.scores import Score, scores_of, table, to_json

_OWN = ("pretrained", "tokenizer", "checkpoints", "iterations", "keep_converted", "output")

_RESULTS = ("results.json", "results.txt", "results.svg")
"""The files of the scores of all models, in the folder of the results."""


def main(words: Sequence[str]) -> int:
    """Evaluate, and return the exit code: 0 if all is done, 2 for a user's mistake."""
    arguments = _parser().parse_args(words)
    output = Path(arguments.output)
    for name in _RESULTS:  # those of an earlier run would be taken for this one's
        (output / name).unlink(missing_ok=True)
    try:
        scores = _evaluated(arguments)
    except UserError as error:
        for message in error.messages:
            print(f"{MISTAKE}{' '.join(message.split())}", flush=True)
        return error.exit_code
    json_file, text_file, picture_file = (output / name for name in _RESULTS)
    write_atomic(json_file, _text(to_json(scores)))
    write_atomic(text_file, table(scores))
    print(table(scores), end="", flush=True)
    if len({one.model for one in scores}) > 1:
        write_atomic(picture_file, picture(scores))
    print(f"flagscale: wrote {len(scores)} scores to {output}", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = run_parser()
    parser.add_argument("--pretrained", help="folder or name of the model")
    parser.add_argument("--tokenizer", help="folder or name of its tokenizer")
    parser.add_argument("--checkpoints", nargs="+", default=[], help="folders to evaluate one after another")
    parser.add_argument("--iterations", nargs="+", default=[], help="of --checkpoints: `all`, or numbers")
    parser.add_argument("--keep-converted", action="store_true", help="keep the models that were converted")
    parser.add_argument("--output", required=True, help="folder of the results")
    return parser


def _evaluated(arguments: argparse.Namespace) -> list[Score]:
    """Return the scores of all models.

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
    models, tasks = models_of(arguments), tasks_of(settings)
    progress = Progress(len(models))
    scores: list[Score] = []
    for model in models:
        place = output / "converted" / model.name
        with (
            huggingface_folder(model, place, keep=arguments.keep_converted) as folder,
            counted_warnings() as warnings,
        ):
            results = _results(settings, tasks, model.name, folder, progress)
        for warning, count in warnings.items():
            print(f"flagscale: {model.name}: {count} x {warning}", flush=True)
        samples = results.pop("samples", {})
        folder_of_model = output / "models" / model.name
        write_atomic(folder_of_model / "results.json", _text({**results, "warnings": warnings}))
        for task, lines in samples.items():
            records = "".join(_text(one, indent=None) for one in lines)
            write_atomic(folder_of_model / f"{task}.jsonl", records)
        scores += scores_of(results, model.name, model.iteration)
    return scores


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


def tasks_of(settings: Any) -> tuple[Any, list[str]]:
    """Return the harness's index of tasks, and the tasks to run, with patterns replaced by what they match.

    Reading the harness's 14 000 files takes many seconds: its own tasks are left out if all are the user's.

    Raises:
        UserError: a task is unknown.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind

    wanted = [*dict.fromkeys(settings.tasks)]
    where = {"include_path": settings.include_path, "metadata": settings.metadata}
    own = TaskManager(include_defaults=False, **where)
    kinds = {name: entry.kind for name, entry in own.task_index.items()}
    if all(kinds.get(task) is Kind.TASK or Path(task).is_file() for task in wanted):
        return own, wanted
    every = TaskManager(**where)
    found: list[str] = []
    for task in wanted:
        matching = [task] if Path(task).is_file() else every.match_tasks([task])
        if not matching:
            raise UserError(f"unknown task `{task}` (tasks, include_path)")
        found += matching
    return every, [*dict.fromkeys(found)]


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
    sys.exit(main(sys.argv[1:]))
