"""The scripts are readable, and safe whatever characters the values contain."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagscale.plan.render import command_lines, run_script, scripts, stop_script
from flagscale.values import LaunchPlan
from tests.unit.conftest import HOSTILE
from tests.unit.plans import make_job, make_plan


def test_text_of_the_run_and_stop_scripts() -> None:
    job = make_job(2, argv=("--data-path", "0.5", "/data/a b", "--bf16"))
    plan = replace(
        make_plan(Path("/runs/my demo"), job=job, local_addr="10.0.0.1"), before_start="module load x\n"
    )
    assert run_script(plan, plan.nodes[0]) == (
        """\
#!/usr/bin/env bash
# demo: host 0 of 1, localhost, 2 of 2 ranks (tp2 x dp2) on chip
# run demo-1
#
# The supervisor starts this command (it reads plan.json, not these lines):
#   CHIP_MODE=fast
#   SHARED=role
#   FLAGSCALE_CHIP=chip
#   ORDER=kept
#   ROLE=yes
#   FLAGSCALE_RUN_ID=demo-1
#   FLAGSCALE_HOST_RANK=0
#   FLAGSCALE_FAILURE_FILE='/runs/my demo/logs/pids/host_0_localhost.failure.json'
#   FLAGSCALE_HEARTBEAT_FILE='/runs/my demo/logs/pids/host_0_localhost.heartbeat'
#   /usr/bin/python3 -m megatron.flagscale.torchrun
#   --nnodes 1
#   --nproc-per-node 2
#   --rdzv-backend c10d
#   --rdzv-endpoint 127.0.0.1:0
#   --local-addr 10.0.0.1
#   --rdzv-id demo-1
#   --max-restarts 0
#   --shutdown-timeout 3
#   --log-dir '/runs/my demo/logs/details/host_0_localhost'
#   --redirects 3
#   --tee 3
#   --module a.module
#   --data-path 0.5 '/data/a b'
#   --bf16
set -eo pipefail
cd /

# experiment.cmds.before_start
module load x

export PYTHONPATH=/source:/source/vllm:/source/megatron-energon${PYTHONPATH:+:$PYTHONPATH}
exec /usr/bin/python3 -m flagscale.node supervise '/runs/my demo' 0 demo-1
"""
    )
    assert stop_script(plan, plan.nodes[0]) == (
        """\
#!/usr/bin/env bash
# Ends run demo-1 on host 0, localhost, and nothing else; then runs experiment.cmds.after_stop.
export PYTHONPATH=/source:/source/vllm:/source/megatron-energon${PYTHONPATH:+:$PYTHONPATH}
exec /usr/bin/python3 -m flagscale.node stop '/runs/my demo' 0 demo-1
"""
    )


def test_scripts_set_no_path_for_an_installed_package() -> None:
    """The folder `vllm` beside it is vLLM itself, whose modules would hide other packages."""
    plan = replace(make_plan(Path("/runs")), source_root="")
    assert "PYTHONPATH" not in run_script(plan, plan.nodes[0]) + stop_script(plan, plan.nodes[0])


def test_every_host_has_a_run_and_a_stop_script() -> None:
    names = [path.name for path in scripts(make_plan(Path("/runs"), 1, 1))]
    assert names == [
        "host_0_node0_run.sh",
        "host_0_node0_stop.sh",
        "host_1_node1_run.sh",
        "host_1_node1_stop.sh",
    ]


RECORDER = """#!/bin/bash
printf '%s\\0' "$@" > "$RECORD"
"""


def hostile_plan(folder: Path, value: str) -> LaunchPlan:
    """Return a plan with this value wherever a user can set one, and a python that records its arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "fake python"
    python.write_text(RECORDER)
    python.chmod(0o755)
    plan = make_plan(folder, job=make_job(2, argv=("--name", value)), envs={"VALUE": value})
    node = replace(plan.nodes[0], cwd=str(folder))
    return replace(plan, name=value, python=str(python), nodes=(node,))


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_stay_in_comments(tmp_path: Path, value: str) -> None:
    folder = tmp_path / f"run {value.replace('/', '_')}"
    plan = hostile_plan(folder, value)
    for verb, text in (
        ("supervise", run_script(plan, plan.nodes[0])),
        ("stop", stop_script(plan, plan.nodes[0])),
    ):
        record = tmp_path / "record"
        done = subprocess.run(
            ["bash"],
            input=text,
            env={"RECORD": str(record), "PATH": "/usr/bin:/bin"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert record.read_text().split("\0")[:-1] == [
            "-m",
            "flagscale.node",
            verb,
            str(folder),
            "0",
            "demo-1",
        ]
    assert not list(tmp_path.rglob("x"))


@settings(max_examples=25)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_command_lines_can_be_pasted_into_bash(word: str) -> None:
    (line,) = command_lines((word,))
    assert "\n" not in line
    done = subprocess.run(["bash", "-c", f"printf %s {line}"], capture_output=True, check=True)
    assert done.stdout.decode() == word


def test_a_name_that_is_not_utf8_is_escaped() -> None:
    (line,) = command_lines(("caf\udce9",))
    assert (
        subprocess.run(["bash", "-c", f"printf %s {line}"], capture_output=True, check=True).stdout
        == b"caf\xe9"
    )


def test_scripts_contain_the_run_id_but_no_secrets(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    for text in scripts(plan).values():
        assert json.loads(plan.to_json())["run_id"] in text
        assert "geheim" not in text
