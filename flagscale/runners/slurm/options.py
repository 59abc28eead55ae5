"""The long options of sbatch, and which of them FlagScale sets itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from flagscale.runners.slurm.commands import SlurmError, call

Kind = Literal["value", "switch", "either"]
"""Whether an option takes a value; `either`: the value may be left out."""

_VALUES = """
    account acctg-freq batch bb bbf begin cluster-constraint comment constraint container container-id
    core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency distribution
    exclude extra extra-node-info gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gres gres-flags hint
    kill-on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus
    network nodefile nodelist partition power prefer priority profile qos reservation resources segment signal
    sockets-per-node switches thread-spec threads-per-core time time-min tmp tres-bind tres-per-task
    wait-all-nodes wckey
"""
_SWITCHES = """
    consolidate-segments contiguous hold ignore-pbs overcommit oversubscribe reboot spread-job spread-segments
    stepmgr use-min-nodes
"""
_EITHER = "exclusive nice no-kill oom-kill-step propagate resv-ports"
OPTIONS: Mapping[str, Kind] = {
    **dict.fromkeys(_VALUES.split(), "value"),
    **dict.fromkeys(_SWITCHES.split(), "switch"),
    **dict.fromkeys(_EITHER.split(), "either"),
}
"""The options of sbatch 22.05 to 25.11, from its manual page (`sbatch --help` leaves out 15 of them), without
those of `SET_BY_FLAGSCALE`. Installed versions may have more and fewer.
"""

_LAYOUT = "one task per host is started, which starts the ranks; use experiment.runner.nproc_per_node"
_ENVIRONMENT = "the job gets the environment of this command; use experiment.envs for more variables"
_OUTPUT = "the output is in the run directory (action=logs)"
_NOT_HERE = "it has no use here"
SET_BY_FLAGSCALE: Mapping[str, str] = {
    "array": "a run directory holds one run; for several, use a sweep (-m)",
    "chdir": "the job runs in the folder of this command",
    "clusters": "run this command on a login node of that cluster",
    "error": _OUTPUT,
    "export": _ENVIRONMENT,
    "export-file": _ENVIRONMENT,
    "get-user-env": _ENVIRONMENT,
    "gid": "run this command as that group",
    "gpus-per-task": "use gpus_per_node",
    "help": _NOT_HERE,
    "input": "a job reads no input",
    "job-name": "it is the run id, which begins with experiment.exp_name",
    "no-requeue": "use `requeue: false`",
    "nodes": "use experiment.runner.nnodes",
    "ntasks": _LAYOUT,
    "ntasks-per-core": _LAYOUT,
    "ntasks-per-gpu": _LAYOUT,
    "ntasks-per-node": _LAYOUT,
    "ntasks-per-socket": _LAYOUT,
    "open-mode": _OUTPUT,
    "output": _OUTPUT,
    "parsable": _NOT_HERE,
    "quiet": _NOT_HERE,
    "requeue": "it holds for the whole job, as experiment.runner.slurm.requeue",
    "test-only": "use action=check or action=dryrun",
    "uid": "run this command as that user",
    "usage": _NOT_HERE,
    "verbose": _NOT_HERE,
    "version": _NOT_HERE,
    "wait": "use action=test, which waits for the job",
    "wrap": "the job is the experiment",
}
"""Options that cannot be given, and what to use instead."""


def declared() -> Mapping[str, Kind]:
    """Return the options that the installed sbatch prints with `--help`; empty if it cannot be asked."""
    try:
        return parse_help(call("sbatch", "--help"))
    except SlurmError:
        return {}


def parse_help(text: str) -> dict[str, Kind]:
    """Return the long options in the output of `sbatch --help`, which is vague about their values."""
    names = re.findall(r"^ +(?:-\w,? +)?--([a-z][a-z0-9-]*)", text, re.MULTILINE)
    return {name: OPTIONS.get(name, "either") for name in names if name not in SET_BY_FLAGSCALE}
