"""The secrets of a job in Slurm's queue, which the recorded configuration masks: a file that only its user
can read, in the run directory, until the job is over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from flagscale.config.recorded import literal
from flagscale.config.schema import Experiment
from flagscale.config.secrets import is_secret
from flagscale.errors import FlagScaleError
from flagscale.files import write_atomic
from flagscale.run.rundir import RunDir

type Secret = tuple[list[str], Any]
"""The keys that lead to a secret, and its value."""


def hide(run_dir: RunDir, experiment: Experiment) -> None:
    """Write the secrets of a job; no file is left if there are none."""
    found = [
        *secrets_of(experiment.envs.model_dump(), ("experiment", "envs")),
        *secrets_of(experiment.arguments, (experiment.task.type,)),
    ]
    run_dir.slurm_secrets.unlink(missing_ok=True)
    if found:
        write_atomic(run_dir.slurm_secrets, json.dumps(found), 0o600)


def secrets_of(tree: Mapping[Any, Any], keys: tuple[str, ...]) -> Iterator[Secret]:
    """Yield the secrets in a tree of values that is at these keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from secrets_of(value, (*keys, str(key)))
        elif is_secret(str(key)) and value not in (None, "") and not isinstance(value, bool):
            yield [*keys, str(key)], value


def restore(run_dir: RunDir, config: DictConfig) -> None:
    """Put the secrets of a job into its recorded configuration.

    Raises:
        FlagScaleError: the file cannot be read.
    """
    try:
        found: list[Secret] = json.loads(run_dir.slurm_secrets.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise FlagScaleError(f"{run_dir.slurm_secrets} cannot be read: {error}") from None
    with open_dict(config):
        for keys, value in found:
            place: Any = config
            for key in keys[:-1]:
                place = place[key]
            place[keys[-1]] = OmegaConf.create({"value": literal(value)})._get_node("value")


def forget(run_dir: RunDir) -> None:
    """Remove the secrets of a job that is over."""
    run_dir.slurm_secrets.unlink(missing_ok=True)
