"""Batch inference: an engine a host goes through its share of the prompts and writes what it generates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagscale import platforms
from flagscale.config.engine_args import EngineArguments, render
from flagscale.config.locate import Locator
from flagscale.config.schema import Experiment
from flagscale.engines.vllm_catalog import vllm_catalog
from flagscale.engines.vllm_keys import devices_of, flat, refuse, take_secrets
from flagscale.engines.vllm_request import Generate, read_generate
from flagscale.engines.vllm_rules import findings, remarks
from flagscale.engines.vllm_serve import ENV
from flagscale.errors import Problem, nearest
from flagscale.inputs.model_folder import inputs_of
from flagscale.job import Host, Job, Program, Role

GENERATE = "vllm_flagscale.generate"
STOP_GRACE = 10.0
_SECTIONS = ("llm", "generate")


def read(
    group: str, raw: Mapping[str, Any], locator: Locator, problems: list[Problem]
) -> tuple[EngineArguments | None, Generate | None, dict[str, str]]:
    """Return the engine's arguments, what to generate, and the secrets as environment."""
    for key in raw:
        if key not in _SECTIONS:
            hint = nearest(str(key), _SECTIONS)
            problems.append(Problem(f"unknown key `{key}`", locator.where(f"{group}.{key}"), hint))
    missing = [key for key in _SECTIONS if not isinstance(raw.get(key), Mapping)]
    problems += [Problem("this section is required", locator.where(f"{group}.{key}")) for key in missing]
    arguments, generate = None, None
    secrets: dict[str, str] = {}
    if "llm" not in missing:
        catalog = vllm_catalog().engine
        leaves = refuse(flat(f"{group}.llm", raw["llm"], catalog, locator, problems), locator, problems)
        # A server's key means nothing to an engine without one: told as unknown.
        keys = [leaf for leaf in leaves if leaf.name.startswith("api_key")]
        others, secrets = take_secrets([leaf for leaf in leaves if leaf not in keys], locator, problems)
        arguments = render([*others, *keys], catalog, locator, problems)
    if "generate" not in missing:
        generate = read_generate(f"{group}.generate", raw["generate"], locator, problems)
    return arguments, generate, secrets


def job(
    experiment: Experiment, hosts: tuple[Host, ...], locator: Locator, problems: list[Problem]
) -> Job | None:
    """Return the job; None where `problems` says why not."""
    arguments, generate, secrets = read("inference", experiment.arguments, locator, problems)
    if problems or arguments is None or generate is None:
        return None
    values = arguments.values

    def where(dest: str) -> str:
        return locator.where(arguments.paths.get(dest, f"inference.llm.{dest}"))

    wrong = list(findings(values, hosts[0].platform, arguments.paths))
    problems += [Problem(what, where(dest)) for dest, what in wrong]
    if values["data_parallel_size"] > 1:
        what = "prompts are shared out among hosts, an engine each"
        problems.append(Problem(what, where("data_parallel_size"), "remove the key"))
    if problems:
        return None
    devices = devices_of(values)
    short = [host for host in hosts if host.slots < devices]
    for host in short:
        what = f"the parallel degrees take {devices} devices, {host.name} has {host.slots}"
        problems.append(Problem(what, locator.where("inference.llm")))
    idle = [host for host in hosts if platforms.find(host.platform).visible_devices and host.slots > devices]
    notices = [f"{where(dest)}: {what}" for dest, what in remarks(values, arguments.paths)]
    notices += [f"{host.name}: the engine takes {devices} of its {host.slots} devices" for host in idle]
    return Job(
        name=experiment.name,
        task_type="inference",
        engine="vllm",
        engine_version=vllm_catalog().server.version,
        role=Role(
            name="inference",
            entrypoint=experiment.task.entrypoint or GENERATE,
            argv=(),
            env=ENV,
            stop_grace=experiment.runner.stop_grace or STOP_GRACE,
        ),
        hosts=hosts,
        layout=f"{values['model']} TP{values['tensor_parallel_size']} PP{values['pipeline_parallel_size']}",
        programs={
            host.rank: (
                Program(
                    name="generate",
                    argv=(*arguments.argv, *_request(generate, experiment, rank, len(hosts))),
                    model=str(values["model"]),
                ),
            )
            for rank, host in enumerate(hosts)
        },
        inputs={"models": [inputs_of(values)], "prompts_file": _absolute(generate.prompts_file)},
        secrets=secrets,
        notices=tuple(notices),
    )


def _request(generate: Generate, experiment: Experiment, rank: int, hosts: int) -> tuple[str, ...]:
    """Return the words that `vllm_flagscale.generate` reads; a path is a word, as hosts may rename it."""
    output = Path(_absolute(generate.output) or experiment.exp_dir / "results.jsonl")
    if hosts > 1:
        output = output.with_name(f"{output.stem}_{rank}{output.suffix}")
    prompts = json.dumps(generate.prompts, ensure_ascii=False)
    file = ("--prompts-file", _absolute(generate.prompts_file))
    return (
        *(file if generate.prompts_file else ("--prompts", prompts)),
        *("--sampling", json.dumps(generate.sampling, ensure_ascii=False)),
        *("--batch-size", str(generate.batch_size), "--output", str(output)),
        *("--share", str(rank), str(hosts)),
        *(("--chat",) if generate.chat else ()),
    )


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute()) if path else ""
