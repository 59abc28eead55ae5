"""The plan of a job without an engine, and a launcher in a separate process, which a test may kill."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flagscale.values import LaunchPlan, NodeCommand

ROOT = Path(__file__).resolve().parents[2]
AGENT, SERVER, ROUTER = (
    Path(__file__).with_name(f"fake_{name}.py") for name in ("agent", "server", "router")
)
"""The fake agent, the fake server and the fake router."""


def fake_plan(exp_dir: Path, run_id: str, nodes: Sequence[NodeCommand], **more: Any) -> LaunchPlan:
    """Return the plan of a job whose agents are `fake_agent.py`, with `more` as further fields."""
    return LaunchPlan(
        run_id=run_id,
        name="fake",
        task_type="train",
        engine="fake",
        engine_version="1",
        layout="dp1",
        world_size=sum(node.host.slots for node in nodes),
        exp_dir=str(exp_dir),
        python=sys.executable,
        source_root=str(ROOT),
        before_start="",
        after_stop="",
        nodes=tuple(nodes),
        **more,
    )


def launch(
    plan: LaunchPlan, folder: Path, environment: Mapping[str, str], **changes: Any
) -> subprocess.Popen[str]:
    """Start a plan, which is written below `folder`, from a separate process."""
    file = folder / f"plan {plan.run_id}"
    file.write_text(plan.to_json())
    service = (
        "import signal, sys\n"
        "from flagscale.values import LaunchPlan; from flagscale.remote import launcher\n"
        # A shell that runs the tests in the background makes them ignore SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "plan = LaunchPlan.from_json(open(sys.argv[1]).read()); launcher.start(plan, '', {})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", service, str(file)],
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **changes,
    )
