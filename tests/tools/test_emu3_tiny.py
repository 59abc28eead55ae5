"""The tool that makes a tiny Emu3; `tests/e2e/test_emu3_engine.py` uses what it makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/emu3/tiny.py"), "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}: exists; choose another --output, or delete it\n"
