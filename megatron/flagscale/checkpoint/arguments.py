"""Store with each checkpoint what its run was; compare it when a run resumes (`flagscale.checks.resume`).

The arguments are recorded as the user gave them: the engine fills in and changes many of them later.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagscale.checks.blend import content
from flagscale.checks.loading import RANKS
from flagscale.checks.lora import BASE
from flagscale.checks.recorded import (
    CONTENT,
    KEEP,
    OVERRIDE,
    RECORDED,
    STRICTNESS,
    TOKENIZER,
    WITH_OPTIM,
    record,
)
from flagscale.checks.resume import Saved, resume_notices, resume_violations
from flagscale.checks.vocabulary import tokenizer_of
from flagscale.errors import Problem, UserError
from flagscale.formats import option_of
from flagscale.run.checkpoints import read_arguments, write_arguments

_READ = (
    *("tokenizer_model", "finetune", WITH_OPTIM, "pretrained_checkpoint", "no_load_optim", "skip_train"),
    *("moe_use_upcycling", OVERRIDE, KEEP, STRICTNESS),
)
"""Needed to compare, but not stored."""
_given: dict[str, Any] = {}


def remember(values: Mapping[str, Any]) -> None:
    """Keep the parsed arguments (by dest) of this process, before the engine validates them.

    Data and tokenizer are identified now: they are those of this run even if the files change later.
    """
    _given.clear()
    _given.update({name: values[name] for name in values if name in RECORDED or name in _READ})
    _given[CONTENT], _given[TOKENIZER] = content(values, only_train=True), tokenizer_of(values)


def remember_base(identity: str) -> None:
    """Keep the identity of the base, in a run that trains adapters."""
    _given[BASE] = identity


def record_of(args: Any) -> dict[str, Any]:
    """Return the record of this run; the batch size is the engine's if none was given."""
    values = {**_given, "global_batch_size": args.global_batch_size, RANKS: args.data_parallel_size}
    switches = {name: values.get(name) for name in _READ}
    base = {BASE: _given[BASE]} if BASE in _given else {}
    return {**switches, **base, **record(values, values.get(CONTENT, ""), values.get(TOKENIZER, ""))}


def store(folder: Path, args: Any) -> None:
    """Write this run's record to the folder of a checkpoint."""
    write_arguments(folder, {name: value for name, value in record_of(args).items() if name not in _READ})


def compare(
    folder: Path, args: Any, common: Mapping[str, Any], *, resumes: bool, is_base: bool = False
) -> list[str]:
    """Return notices about what differs from the run that saved a checkpoint.

    `common` holds the engine's arguments of that run, which are compared if no record was stored. If the run
    does not resume, it loads the weights only: also those of a base, to which it adds adapters.

    Raises:
        UserError: a difference is refused; all of them are reported.
    """
    stored = read_arguments(folder)
    name = f"the checkpoint {folder}"
    values, now = (stored, record_of(args)) if stored else (record(common), vars(args))
    saved = Saved(name, values, resumes, is_base)
    if wrong := list(resume_violations(saved, now)):
        raise UserError(Problem(what, option_of(dest)) for dest, what in wrong)
    return [what for _, what in resume_notices(saved, now)]
