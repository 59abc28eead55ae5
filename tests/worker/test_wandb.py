"""A training that logs to W&B, with a stand-in for its package that records what it is given."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flagscale_testing.packages import write_package
from flagscale_testing.ranks.forked import Run, run_all
from flagscale_testing.ranks.training import MOCK_DATA, MODEL, read_metrics
from megatron.flagscale.program import train

RECORDS = "calls.jsonl"
STAND_IN = """\
import json, os, pathlib
_folder = ""

class config:
    update = staticmethod(lambda values: None)

def _record(**what):
    with open(pathlib.Path(_folder) / "calls.jsonl", "a") as file:
        file.write(json.dumps(what) + "\\n")

def init(dir, name, project, config):
    global _folder
    _folder = dir
    _record(name=name, project=project, layers=config["num_layers"], rank=os.environ["RANK"])

def log(values, step):
    _record(step=step, values={key: float(value) for key, value in values.items()})

def finish():
    _record(finished=True)
"""


def train_with_stand_in(argv: list[str]) -> None:
    """Train where the package in the folder `site`, beside that of W&B, is installed."""
    folder = Path(argv[argv.index("--wandb-save-dir") + 1]).parent
    sys.path.insert(0, str(folder / "site"))
    train(argv)


def test_the_last_rank_logs_the_losses_of_training_and_validation(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    write_package(site, "wandb", {}, STAND_IN)
    argv = (
        *(*MODEL, *MOCK_DATA, "--train-iters", "2", "--eval-interval", "2", "--eval-iters", "1"),
        *("--wandb-project", "p", "--wandb-exp-name", "demo", "--wandb-save-dir", str(tmp_path / "w")),
        *("--tensorboard-dir", str(tmp_path / "t"), "--tensorboard-log-interval", "1", "--log-params-norm"),
    )
    curve = run_all([Run("run", 2, argv, f"{__name__}:train_with_stand_in")], tmp_path)["run"]
    assert not curve.error
    begun, *logged, finished = [json.loads(line) for line in (tmp_path / "w" / RECORDS).open()]
    assert begun == {"name": "demo", "project": "p", "layers": 4, "rank": "1"}
    assert finished == {"finished": True}
    values = {(key, one["step"]): value for one in logged for key, value in one["values"].items()}
    assert (values["lm loss", 1], values["lm loss", 2]) == curve.losses
    # What the message about v0.6.0's `wandb_log_model` promises.
    assert {("grad-norm", 1), ("params-norm", 1)} <= {*values}
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    evaluated = {
        key: line[key] for line in metrics for key in ("validation_loss", "test_loss") if key in line
    }
    assert evaluated["validation_loss"] == values["lm loss validation", 2]
    assert evaluated["test_loss"] == values["lm loss validation-test", 2]
