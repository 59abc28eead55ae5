"""Batch inference: one engine per host processes its share of the prompts and writes the results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from flagscale import platforms
from flagscale.checks.data import GUIDANCE
from flagscale.checks.guidance import KEYS as GUIDANCE_KEYS
from flagscale.checks.guidance import penalty_violations
from flagscale.checks.model_folder import inputs_of
from flagscale.checks.picture_prompts import IMAGE, LISTS, PictureBatch
from flagscale.config.engine_args import EngineArguments, render
from flagscale.config.schema import Experiment
from flagscale.config.source_map import SourceMap
from flagscale.config.v060.translate import translate_inference
from flagscale.engines.vllm.arguments import (
    broken_rules,
    config_of,
    devices_of,
    flat,
    remarks,
    take_secrets,
)
from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.engines.vllm.emu3 import take_pictures, words_of
from flagscale.engines.vllm.emu3_model import serves_emu3
from flagscale.engines.vllm.generate import Generate, read_generate
from flagscale.engines.vllm.generation import generation_values
from flagscale.engines.vllm.guidance import broken_by_guidance
from flagscale.engines.vllm.lengths import may_exceed
from flagscale.engines.vllm.refused import refuse
from flagscale.engines.vllm.sampling import field_violations, request_violations
from flagscale.engines.vllm.serve import ENV
from flagscale.errors import Problem, Violation, nearest
from flagscale.files import user_path
from flagscale.run.rundir import RunDir
from flagscale.values import Host, Job, Role, Service

GENERATE = "vllm_flagscale.generate"
STOP_GRACE = 10.0
_SECTIONS = ("llm", "generate")
_OF_GENERATE = {"prompts", "prompts_file", "sampling", *GUIDANCE_KEYS, "mode", *LISTS}
_GIVE = "give it in `generate`"


class Read(NamedTuple):
    """The task group: each part is None if it cannot be read."""

    arguments: EngineArguments | None
    generate: Generate | None
    pictures: PictureBatch | None
    """Also None if the section has no mode of Emu3."""
    secrets: dict[str, str]
    """Environment variables that replace keys."""
    notices: list[str]


def read(group: str, raw: Mapping[str, Any], source_map: SourceMap, problems: list[Problem]) -> Read:
    """Return the task group as far as it can be read."""
    raw, notices = translate_inference(raw, group, source_map, problems)
    for key in raw:
        if key not in _SECTIONS:
            hint = nearest(str(key), _SECTIONS)
            problems.append(Problem(f"unknown key `{key}`", source_map.where(f"{group}.{key}"), hint))
    missing = [key for key in _SECTIONS if not isinstance(raw.get(key), Mapping)]
    for key in missing:
        what = "this section is required" if raw.get(key) is None else "a group of keys is expected here"
        problems.append(Problem(what, source_map.where(f"{group}.{key}")))
    arguments, generate, pictures = None, None, None
    secrets: dict[str, str] = {}
    if "llm" not in missing:
        catalog = vllm_catalog().engine
        found = flat(f"{group}.llm", raw["llm"], catalog, source_map, problems)
        misplaced = [flat_key for flat_key in found if flat_key.name in _OF_GENERATE]
        problems += [
            Problem(f"`{one.name}` is no argument of the engine", source_map.where(one.path), _GIVE)
            for one in misplaced
        ]
        others = [flat_key for flat_key in found if flat_key not in misplaced]
        flat_keys = refuse(others, source_map, problems)
        # A server's key has no effect in an engine without a server: it is reported as unknown.
        keys = [flat_key for flat_key in flat_keys if flat_key.name.startswith("api_key")]
        others, secrets = take_secrets(
            [flat_key for flat_key in flat_keys if flat_key not in keys], source_map, problems
        )
        arguments = render([*others, *keys], catalog, source_map, problems)
    if "generate" not in missing:
        path = f"{group}.generate"
        pictures, rest = take_pictures(path, raw["generate"], arguments, source_map, problems, notices)
        generate = read_generate(path, rest, source_map, problems)
    # With Emu3, every engine guides, whether or not the batch does.
    if arguments and generate and (generate.guided or serves_emu3(arguments.values)):
        problems += [
            Problem(what, source_map.where(arguments.paths[dest]))
            for dest, what in broken_by_guidance(arguments, generate.guided)
        ]
    return Read(arguments, generate, pictures, secrets, notices)


def job(
    experiment: Experiment, hosts: tuple[Host, ...], source_map: SourceMap, problems: list[Problem]
) -> Job | None:
    """Return the job; None if there are `problems`."""
    arguments, generate, pictures, secrets, translated = read(
        "inference", experiment.arguments, source_map, problems
    )
    if arguments is None:
        return None
    values = arguments.values
    if pictures and pictures.mode == IMAGE:  # of the folder's sampling values, none applies to pictures
        values = {**values, "generation_config": "vllm"}

    def where(dest: str) -> str:
        return source_map.where(arguments.paths.get(dest, f"inference.llm.{dest}"))

    on_host = platforms.find(hosts[0].platform).is_host_processor
    any_length = may_exceed(experiment.envs, hosts)
    broken = broken_rules(arguments, on_host, any_length)
    problems += [Problem(what, where(dest)) for dest, what in broken]
    if values["data_parallel_size"] > 1:
        what = "prompts are distributed over the hosts, with one engine each"
        problems.append(Problem(what, where("data_parallel_size"), "remove the key"))
    if generate is not None and not problems:
        problems += [
            Problem(what, source_map.where(f"inference.generate.sampling.{key}"))
            for key, what in _request_violations(generate, arguments, values)
        ]
    if problems or generate is None:
        return None
    devices = devices_of(values)
    short = [host for host in hosts if host.slots < devices]
    for host in short:
        what = f"the parallel degrees need {devices} devices, but {host.name} has {host.slots}"
        problems.append(Problem(what, source_map.where("inference.llm")))
    idle = [host for host in hosts if platforms.find(host.platform).visible_devices and host.slots > devices]
    remarked = remarks(values, arguments.paths, on_host, any_length, generate.sampling)
    notices = [f"{where(dest)}: {what}" for dest, what in remarked]
    notices += [f"{host.name}: the engine uses {devices} of its {host.slots} devices" for host in idle]
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
        services={
            host.rank: (
                Service(
                    name="generate",
                    argv=(*arguments.argv, *_request(generate, pictures, experiment, rank, len(hosts))),
                    model=str(values["model"]),
                ),
            )
            for rank, host in enumerate(hosts)
        },
        inputs={
            "models": [inputs_of(values)],
            "prompts_file": _absolute(generate.prompts_file),
            **({"pictures": asdict(pictures)} if pictures else {}),
            **({GUIDANCE: generate.guidance} if generate.guidance else {}),
        },
        secrets=secrets,
        texts=arguments.texts,
        notices=(*translated, *notices),
    )


def _request_violations(
    generate: Generate, arguments: EngineArguments, values: Mapping[str, Any]
) -> Iterator[Violation]:
    """Yield what vLLM would refuse in the sampling values that the user and the model's folder give."""
    config = config_of(values) or {}
    vocabulary = config.get("vocab_size")
    size = vocabulary if isinstance(vocabulary, int) and "hf_overrides" not in arguments.paths else None
    defaults = {
        name: value
        for name, value in generation_values(values).items()
        if generate.sampling.get(name) is None
    }
    if wrong := [*field_violations(defaults)]:
        yield from ((key, f"{what} (generation_config.json); give a value here") for key, what in wrong)
        return
    is_plain = not generate.chat and not generate.prompts_file  # a file may hold chats
    yield from request_violations(generate.sampling, defaults, values, size, is_plain)
    if generate.guided:
        remedy = "set `generation_config: vllm` in `llm`"
        yield from penalty_violations(generate.sampling, defaults, remedy)


def _request(
    generate: Generate, pictures: PictureBatch | None, experiment: Experiment, rank: int, hosts: int
) -> tuple[str, ...]:
    """Return the arguments of `vllm_flagscale.generate`; a path is a word of its own: hosts may rename it."""
    run_dir = RunDir(experiment.exp_dir)
    output = Path(_absolute(generate.output) or run_dir.results)
    drawn = output.with_name(f"{output.stem}_pictures") if generate.output else run_dir.pictures
    if hosts > 1:
        output = output.with_name(f"{output.stem}_{rank}{output.suffix}")
        drawn = drawn.with_name(f"{drawn.name}_{rank}")
    prompts = json.dumps(generate.prompts, ensure_ascii=False)
    file = ("--prompts-file", _absolute(generate.prompts_file))
    guidance = json.dumps(generate.guidance, ensure_ascii=False)
    return (
        *(file if generate.prompts_file else ("--prompts", prompts)),
        *("--sampling", json.dumps(generate.sampling, ensure_ascii=False)),
        *("--batch-size", str(generate.batch_size), "--output", str(output)),
        *("--share", str(rank), str(hosts)),
        *(("--chat",) if generate.chat else ()),
        *(words_of(pictures, drawn) if pictures else ()),
        *(("--guidance",) if generate.guided else ()),
        *(("--guidance-keys", guidance) if generate.guidance else ()),
    )


def _absolute(path: str) -> str:
    return str(user_path(path).absolute()) if path else ""
