"""`make demo-serve`: train the demo model if needed, convert it, serve it, query it, and stop the server."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import yaml

from flagscale.run.checkpoints import tracked
from flagscale.run.rundir import RunDir

TRAINED, TASK = Path("outputs/aquila_demo"), Path("examples/aquila/conf/train/demo.yaml")
MODEL = str(TRAINED / "hf")
RUN = ("run.py", "--config-path", "./examples/aquila/conf", "--config-name", "config_serve")
PROMPTS = ("def __init__(self,", "import os\n", "The standard library")


def step(*words: str) -> int:
    """Run a command, printed as a user would type it; return its exit code."""
    print(f"\n$ python {' '.join(repr(word) if ' ' in word else word for word in words)}", flush=True)
    return subprocess.run([sys.executable, *words]).returncode


def is_trained(checkpoints: Path, task: Path) -> bool:
    """Return whether a task's training has reached its end; if it is stopped, it saves a checkpoint, too."""
    iteration = tracked(checkpoints)
    return bool(iteration) and int(iteration) >= yaml.safe_load(task.read_text())["model"]["train_iters"]


def made() -> int:
    """Train the demo model if needed, and convert it to `MODEL`; return the exit code."""
    if not is_trained(RunDir(TRAINED).checkpoints, TASK) and (code := step("tools/demo.py")):
        return code
    checkpoints = str(RunDir(TRAINED).checkpoints)
    return step("tools/checkpoint/convert.py", "--load", checkpoints, "--save", MODEL, "--overwrite")


def served(run: Sequence[str], ask: Callable[[], int]) -> int:
    """Start a server, ask it and query it; return the exit code. The server is always stopped."""
    if code := step(*run, "action=run"):
        return code
    try:
        code = ask() or step(*run, "action=query")
    finally:
        stopped = step(*run, "action=stop")
    reported = subprocess.run(
        [sys.executable, *run, "action=query", "output=json"], capture_output=True, text=True
    )
    left = sum(host["processes"] for host in json.loads(reported.stdout)["hosts"])
    print(f"\nmodel       {MODEL} (opens in transformers and vLLM)\nleft over   {left} processes")
    return code or stopped or (1 if left else 0)


def main() -> int:
    """Run the steps; stop at the first that fails and return its exit code."""
    return made() or served(
        RUN,
        lambda: max(
            step("tools/ask.py", prompt, "--max-tokens", "48", "--temperature", "0.7") for prompt in PROMPTS
        ),
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
