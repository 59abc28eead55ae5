"""A launcher in a process of its own, which a test can interrupt or kill."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagscale.job import LaunchPlan

ROOT = Path(__file__).resolve().parents[2]


def launch(
    plan: LaunchPlan, folder: Path, environment: Mapping[str, str], **changes: Any
) -> subprocess.Popen[str]:
    """Start a plan, which is written below `folder`, from a process of its own."""
    file = folder / f"plan {plan.run_id}"
    file.write_text(plan.to_json())
    program = (
        "import signal, sys\n"
        "from flagscale.job import LaunchPlan; from flagscale.launch import launcher\n"
        # A shell that puts the tests into the background has them ignore it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "plan = LaunchPlan.from_json(open(sys.argv[1]).read()); launcher.start(plan, '', {})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(file)],
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **changes,
    )
