"""Every argument that torchrun declares is a key of `experiment.runner`, and torchrun reads what we pass."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from pydantic import ValidationError
from torch.distributed.elastic.events import handlers
from torch.distributed.run import get_args_parser

from flagscale.config.schema import PASSED_TO_TORCHRUN, Runner
from flagscale.plan.placement import _torchrun
from flagscale.run.rundir import RunDir
from flagscale.values import NodeCommand, Rendezvous
from tests.unit.plans import make_job

ACTIONS = {
    action.dest: action
    for action in get_args_parser()._actions
    if action.option_strings and not isinstance(action, argparse._HelpAction)
}
CHOICES = {
    **{name: action.choices for name, action in ACTIONS.items() if action.choices},
    "event_log_handler": handlers._log_handlers,
}
GIVEN = {
    "rdzv_conf": "timeout=30",
    "monitor_interval": 0.5,
    "shutdown_timeout": 7,
    "log_dir": "/logs",
    "redirects": "0:1,1:2",
    "tee": "2",
    "role": "-trainer",
    "start_method": "fork",
    "event_log_handler": "console",
    "logs_specs": "mine",
    "local_ranks_filter": "0,1",
    "duplicate_stdout_filters": "apple,,pear",
    "duplicate_stderr_filters": "- x,y z",
    "numa_binding": "core-complex",
    "virtual_local_rank": True,
}


def test_every_argument_is_a_key() -> None:
    assert set(ACTIONS) <= set(Runner.model_fields)
    assert set(GIVEN) == set(PASSED_TO_TORCHRUN) <= set(ACTIONS)


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_those_of_torchrun(name: str) -> None:
    for choice in CHOICES[name]:
        assert getattr(Runner.model_validate({name: choice}), name) == choice
    with pytest.raises(ValidationError):
        Runner.model_validate({name: "other"})


def test_torchrun_reads_what_is_passed() -> None:
    job = make_job(2)
    options = _torchrun(
        job, Runner.model_validate(GIVEN), job.hosts[0], RunDir(Path("/run")), "id", Rendezvous("h")
    )
    node = NodeCommand(job.hosts[0], (), {}, "/", "/f", 1.0, options, ("program.py", "--lr"))
    read = vars(get_args_parser().parse_args(node.command()))
    expected = {
        **GIVEN,
        "duplicate_stdout_filters": ["apple,pear"],
        "duplicate_stderr_filters": ["- x", "y z"],
    }
    assert {name: read[name] for name in GIVEN} == expected
    assert (read["training_script"], read["training_script_args"]) == ("program.py", ["--lr"])


def test_a_key_that_is_not_passed_is_decided_by_flagscale() -> None:
    decided = "nnodes nproc_per_node rdzv_backend rdzv_endpoint rdzv_id max_restarts node_rank master_addr"
    refused = {"module", "no_python", "run_path", "signals_to_handle"}
    others = {*decided.split(), "master_port", "local_addr", "standalone", *refused}
    assert set(ACTIONS) - set(PASSED_TO_TORCHRUN) == others
    for name in refused:
        assert getattr(Runner.model_validate({name: False}), name) is None
        with pytest.raises(ValidationError, match="torchrun is set by FlagScale: "):
            Runner.model_validate({name: True})
