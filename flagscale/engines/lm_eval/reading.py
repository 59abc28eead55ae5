"""The `evaluate` group: the harness's arguments, FlagScale's own keys, the models and the tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flagscale.checks.model_folder import mapping_of
from flagscale.config.engine_args import EngineArguments, FlatKey, Unknown, flatten, render
from flagscale.config.source_map import SourceMap
from flagscale.engines.lm_eval.catalog import REFUSED, harness_catalog
from flagscale.engines.lm_eval.sources import (
    CHAT,
    COMPLETIONS,
    OWN,
    CheckpointChoice,
    checkpoint_violations,
    read_checkpoints,
    source_violations,
)
from flagscale.engines.lm_eval.tasks import TaskChoice, read_tasks
from flagscale.errors import Problem, Violation, short

_SEEDS = 4
"""The generators that the harness seeds: of Python, numpy, torch, and of the few-shot examples."""
_TEMPLATE = "apply_chat_template"


@dataclass(frozen=True)
class Reading:
    """The checked group, as far as it can be read."""

    values: Mapping[str, Any]
    """The harness's arguments by dest."""
    argv: tuple[str, ...] = ()
    """Those of them that are passed on as they are."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: CheckpointChoice = field(default_factory=CheckpointChoice)
    tasks: TaskChoice = field(default_factory=TaskChoice)
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return str(self.values["model"] or "hf")

    @property
    def is_served(self) -> bool:
        """Whether a server answers."""
        return self.model in (COMPLETIONS, CHAT)


def read(
    group: str, raw: Mapping[str, Any], source_map: SourceMap, problems: list[Problem], is_here: bool
) -> Reading:
    """Return the group, and add every mistake to `problems`.

    `is_here`: the job's files are on this machine, so that they can be checked.
    """
    catalog = harness_catalog().run

    def takes_mapping(name: str) -> bool:
        option = catalog.by_name.get(name)
        return name in REFUSED or (option is not None and option.type == "loads")

    flat_keys = _allowed(flatten(group, raw, takes_mapping, source_map, problems), source_map, problems)
    own = {one.name: one for one in flat_keys if one.name in (*OWN, _TEMPLATE)}
    rest = [one for one in flat_keys if one.name not in own]
    found = render(rest, catalog, source_map, problems, own=OWN)
    # Their values as YAML has them: `values` holds JSON as text.
    given = {one.name: one.value for one in flat_keys if one.value is not Unknown.VALUE}
    mappings = {name: mapping_of(given.get(name)) for name in ("model_args", "samples")}
    values = {**found.values, **mappings, _TEMPLATE: given.get(_TEMPLATE)}

    def report(key: str, what: str, hint: str = "") -> None:
        name, _, rest = key.partition(".")
        path = own[name].path if name in own else found.paths.get(name, f"{group}.{name}")
        problems.append(Problem(what, source_map.where(f"{path}.{rest}" if rest else path), hint))

    chosen = {name: given[name] for name in OWN if name in given}
    checkpoints, wrong = read_checkpoints(chosen)
    wrong += _value_violations(values, found.paths)
    if not {"model", "model_args"} & found.unknown.keys() and found.is_complete:
        unread = {key for key in OWN if key in own and key not in given} | {key for key, _ in wrong}
        if "checkpoints" not in unread:
            wrong += source_violations(values, checkpoints)
    if is_here:
        wrong += checkpoint_violations(checkpoints)
    for key, what in wrong:
        report(key, what)
    tasks = TaskChoice()
    wanted = _names(values["tasks"])
    if not wanted and "tasks" not in found.unknown and found.is_complete:
        problems.append(
            Problem("`tasks` is required: names of tasks, or YAML files", source_map.where(group))
        )
    elif "include_path" not in found.unknown:
        tasks = read_tasks(wanted, str(values["include_path"] or ""), is_here, report)
    if values["model"] == CHAT and (scored := tasks.needing_probabilities):
        what = f"{', '.join(scored)}: a chat server does not return the probabilities of given answers"
        report("model", what, f"use `{COMPLETIONS}`")
    if shown := tasks.showing_answers(values["num_fewshot"]):
        what = (
            f"{', '.join(shown)}: its examples come from `test_split`, and may be the asked question itself"
        )
        report(
            "tasks", what, "give `fewshot_split` in the file: with the same split, the asked one is left out"
        )
    argv = (*_passed_on(found), *_template_words(values[_TEMPLATE]))
    return Reading(values, argv, values["model_args"], checkpoints, tasks, found.texts)


def _allowed(flat_keys: list[FlatKey], source_map: SourceMap, problems: list[Problem]) -> list[FlatKey]:
    """Return the flat keys that a user may give; the others, if they have a value, are problems."""
    for one in flat_keys:
        if one.name in REFUSED and one.value not in (None, False):
            where = source_map.where(one.path)
            problems.append(Problem(f"`{one.name}` cannot be given here", where, REFUSED[one.name]))
    return [one for one in flat_keys if one.name not in REFUSED]


def _names(tasks: list[str] | None) -> list[str]:
    """Return the names of tasks; as in the harness, a text may hold several with commas."""
    return [name.strip() for text in tasks or () for name in text.split(",") if name.strip()]


def _passed_on(arguments: EngineArguments) -> Iterator[str]:
    """Yield the words of the arguments that the harness gets as they are: all but `model_args`."""
    words = iter(arguments.argv)
    for word in words:
        if word == "--model_args":
            next(words)
        else:
            yield word


def _template_words(given: object) -> tuple[str, ...]:
    if given is True:
        return (f"--{_TEMPLATE}",)
    return (f"--{_TEMPLATE}", given) if isinstance(given, str) else ()


def _value_violations(values: Mapping[str, Any], paths: Mapping[str, str]) -> Iterator[Violation]:
    """Yield the values that the harness would refuse late, or read as something else."""
    template = values[_TEMPLATE]
    if not isinstance(template, bool | str | None) or template == "":
        yield _TEMPLATE, f"`{_TEMPLATE}` takes true, false or the name of a template, not {short(template)}"
    limit = values["limit"]
    if limit is not None and "limit" in paths and limit > 1 and limit != int(limit):
        yield "limit", f"`limit` is {limit}: give a whole number of examples, or a share below 1"
    if limit is not None and values["samples"]:
        yield "samples", "`samples` and `limit` both choose the examples: keep one of them"
    batch = str(values["batch_size"] or "1")
    if not (batch.isdecimal() and int(batch)) and batch.partition(":")[0] != "auto":
        yield "batch_size", f"`batch_size` takes a number from 1, `auto` or `auto:N`, not {batch!r}"
    elif values["max_batch_size"] is not None and not batch.startswith("auto"):
        yield "max_batch_size", "`max_batch_size` has an effect with `batch_size: auto` only"
    seeds = str(values["seed"]).split(",") if values["seed"] is not None else []
    if seeds and (len(seeds) not in (1, _SEEDS) or not all(map(_is_seed, seeds))):
        yield (
            "seed",
            f"`seed` takes a whole number, or a list of {_SEEDS}: random, numpy, torch, few-shot examples",
        )
    if values["fewshot_as_multiturn"] and not template:
        yield "fewshot_as_multiturn", f"`fewshot_as_multiturn` needs `{_TEMPLATE}`"


def _is_seed(text: str) -> bool:
    return text.strip().isdecimal() or text.strip() == "None"
