"""What a command imports: answers about a run wait for no package that only a start needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flagscale.run.rundir import RunDir
from tests.unit.plans import make_plan

ROOT = Path(__file__).parents[2]
NOT_NEEDED = (
    "pydantic",
    "rich",
    "paramiko",
    "importlib.metadata",
    "multistorageclient",
    "flagscale.config.schema",
    "flagscale.engines",
)
"""What a query of a run on this host does without; each takes longer than reading the run's state."""
LISTS = f"""
import sys
from flagscale.cli import main
code = main()
print(*(name for name in {NOT_NEEDED!r} if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize("runner", ["ssh", "slurm"])
@pytest.mark.parametrize(
    ("action", "code"),
    [("query", 1), ("logs", 0), ("stop", 0)],
)
def test_answers_about_a_run_import_nothing_that_a_start_needs(
    action: str, code: int, runner: str, tmp_path: Path
) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.plan.parent.mkdir()
    run_dir.plan.write_text(make_plan(run_dir.path, 1, type=runner).to_json())
    done = subprocess.run(
        [
            *(sys.executable, "-c", LISTS),
            *("--config-path", str(ROOT / "examples/aquila/conf"), "--config-name", "config"),
            *(f"action={action}", f"experiment.exp_dir={run_dir.path}"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr.split()) == (code, []), done.stdout + done.stderr


def test_the_hydra_plugins_of_a_user_are_imported(tmp_path: Path) -> None:
    (tmp_path / "hydra_plugins" / "mine").mkdir(parents=True)
    (tmp_path / "hydra_plugins" / "mine" / "__init__.py").write_text("print('mine')")
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "run.py")),
            *("--config-path", str(ROOT / "examples/aquila/conf"), "--config-name", "config"),
            *("action=query", f"experiment.exp_dir={tmp_path / 'run'}"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )
    assert (done.returncode, done.stdout.splitlines()[0]) == (3, "mine"), done.stdout + done.stderr
