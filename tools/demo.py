"""`make demo`: prepare real text, train the demo model, draw its loss, and print the next commands."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from flagscale.platforms import find
from flagscale.run.rundir import RunDir

RUN = ("run.py", "--config-path", "./examples/aquila/conf", "--config-name", "config")
OUTPUT = Path("outputs/aquila_demo")


def layout(platform: str, devices: int) -> list[str]:
    """Return the overrides that fit the demo's 4 ranks (tensor 2 x pipeline 2) to this machine's devices.

    Ranks on CPU share its cores; a GPU serves one rank.
    """
    if platform == "cpu" or devices >= 4:
        return []
    tensor = 2 if devices >= 2 else 1
    return [
        f"experiment.runner.nproc_per_node={tensor}",
        f"train.system.tensor_model_parallel_size={tensor}",
        "train.system.pipeline_model_parallel_size=1",
    ]


def main() -> int:
    """Run the demo's steps; stop at the first that fails and return its exit code."""
    platform = find("auto")
    overrides = layout(platform.name, platform.count_devices(os.environ))
    steps = (
        ["tools/datasets/demo.py"],
        [*RUN, "action=test", *overrides],
        ["tools/plot_loss.py", str(OUTPUT), "--output", str(OUTPUT / "loss.png")],
    )
    for step in steps:
        print(f"\n$ python {' '.join(step)}", flush=True)
        code = subprocess.run([sys.executable, *step]).returncode
        if code:
            return code
    again = [_python(), *RUN, *overrides, "train.model.train_iters=320", "action=run"]
    print(
        f"""
loss curve   {OUTPUT / "loss.png"}
metrics      {RunDir(OUTPUT).metrics}
checkpoints  {RunDir(OUTPUT).checkpoints}

next: continue training from the checkpoint, in the background:
  {shlex.join(again)}
and manage it with action=query, action=logs follow=true, action=stop"""
    )
    return 0


def _python() -> str:
    """Return the path of this Python as a user would type it here."""
    here = Path.cwd()
    python = Path(sys.executable)
    return str(python.relative_to(here) if python.is_relative_to(here) else python)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
