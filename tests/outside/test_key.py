"""A key of ours takes one row in the schema: there is no second list of keys."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.outside.conftest import ROOT
from tests.outside.test_action import EXPERIMENT

ROW = '''    nap: Seconds = 1.0
    """Seconds to rest."""
'''


def test_one_row_in_the_schema_adds_a_key(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "flagscale", tmp_path / "flagscale")
    shutil.copy(ROOT / "run.py", tmp_path)
    (tmp_path / "counted.yaml").write_text(EXPERIMENT.format(folder=tmp_path))
    schema = tmp_path / "flagscale/config/schema.py"
    head, separator, tail = schema.read_text().partition("class Runner(Section):\n")
    schema.write_text(head + separator + ROW + tail)

    def dryrun(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "run.py", "-cp", ".", "-cn", "counted", "action=dryrun", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )

    done = dryrun("experiment.runner.nap=2.5")
    assert done.returncode == 0, done.stderr
    assert "nap: 2.5" in done.stdout
    done = dryrun("experiment.runner.naps=2")
    assert done.returncode == 2
    assert "did you mean `nap`?" in done.stderr
    done = dryrun("experiment.runner.nap=never")
    assert done.returncode == 2
    assert "runner.nap" in done.stderr
