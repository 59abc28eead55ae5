"""`action=estimate plan=auto`: the chosen layout is a task file that the launcher takes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flagscale.cli import main
from tests.unit.test_estimates import JOB

HOSTS = "slow slots=2 type=V100\nfast slots=2 type=H100\nother slots=2 type=H100\n"
CHIPS = "V100: V100-32\n"
TYPED = (
    "experiment.runner.hostfile=hosts",
    "experiment.chips=chips.yaml",
    "experiment.runner.nproc_per_node=null",
)
Plan = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Run a command on a job whose task group has a file of its own."""
    job = yaml.safe_load(JOB)
    train = job.pop("train")
    (tmp_path / "conf" / "train").mkdir(parents=True)
    (tmp_path / "conf" / "job.yaml").write_text(yaml.dump({"defaults": ["_self_", {"train": "mine"}], **job}))
    (tmp_path / "conf" / "train" / "mine.yaml").write_text(yaml.dump(train))
    (tmp_path / "hosts").write_text(HOSTS)
    (tmp_path / "chips.yaml").write_text(CHIPS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["--config-path", "conf", "--config-name", "job", *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_the_launcher_takes_the_task_file_with_the_hosts_that_take_part(plan: Plan) -> None:
    # fp16, which a V100 has; the layout of the configuration itself fits no host.
    words = (*TYPED, "train.system.bf16=null", "train.fp16=true")
    layers = "[{tp:64,layers:[4]},{dp:3,layers:[4]}]"
    meshes = f"train.system.hetero={{enable_hetero:true,hetero_process_meshes:{layers}}}"
    broken = ("train.system.tensor_model_parallel_size=64", "train.model.global_batch_size=30")
    code, out, err = plan(
        "plan=auto", *words, *broken, meshes, "task_file=conf/train/auto.yaml", "picture=p.svg"
    )
    assert code == 0, err
    assert re.search(r"^considered:\n  On 2 V100, 4 H100: ", out, re.MULTILINE)
    assert re.search(r"^  The runner-up, ", out, re.MULTILINE)
    assert re.search(r"^  1 .* layers ", out, re.MULTILINE)
    assert Path("p.svg").read_text().startswith("<svg")
    (command,) = re.findall(r"^run it with the same command and (.*) action=run$", out, re.MULTILINE)
    kept = [word for word in words if word.partition("=")[0] not in command and not word.startswith("train.")]
    code, planned, err = plan("action=dryrun", *kept, *command.split())
    assert code == 0, err
    ranks = re.match(r"large: (\d+) ranks", planned)
    assert ranks
    assert f"large: {ranks[1]} ranks" in out
    written = yaml.safe_load(Path("conf/train/auto.yaml").read_text())
    assert written["model"]["global_batch_size"] == 30
    assert written["fp16"] is True
    assert written["system"].get("tensor_model_parallel_size", 1) < 64
    code, _, err = plan("action=estimate", *kept, *command.split())
    assert code == 0, err


def test_hosts_that_stay_idle_are_not_in_the_hostfile(plan: Plan) -> None:
    """One sample per step: more ranks than a few have nothing to do."""
    words = (
        *TYPED,
        "train.model.global_batch_size=1",
        "train.model.num_layers=2",
        "train.model.num_attention_heads=2",
    )
    code, out, err = plan("plan=auto", *words, "task_file=auto.yaml")
    assert code == 0, err
    lines = Path("auto.hostfile").read_text().splitlines()
    assert 0 < len(lines) < 3
    assert "once the task file is in the folder train/" in out


def test_a_plan_for_a_batch_that_grows_keeps_its_schedule(plan: Plan) -> None:
    grows = ("train.model.global_batch_size=null", "train.step_batch_size_schedule='0:8 1M:64'")
    length = ("train.model.train_iters=null", "train.train_samples=80")
    words = ("action=estimate", "plan=auto", "task_file=conf/train/auto.yaml", *TYPED)
    code, _, err = plan(*words, *grows, *length)
    assert code == 0, err
    written = Path("conf/train/auto.yaml").read_text()
    assert 'step_batch_size_schedule: "0:8 1M:64"' in written
    assert "global_batch_size: null" in written


def test_hosts_of_unequal_sizes_are_used_as_blocks(plan: Plan) -> None:
    Path("hosts").write_text("a slots=4\nb slots=2\n")
    code, out, err = plan("action=estimate", "plan=auto", "chip=H100", *TYPED[::2])
    assert code == 0, err
    assert re.search(r"Hosts of unequal sizes are used as blocks of [24] of H100", out)
    assert "The hosts, in the order of the hostfile: 1 x slots=4" in out


def test_what_does_not_fit_with_its_own_interval_is_left_out(plan: Plan) -> None:
    """Context parallelism, unequal meshes and interleaving have wider intervals than an ordinary job."""
    code, out, err = plan("action=estimate", "plan=auto", "output=json", *TYPED)
    assert code == 0, err
    assert json.loads(out)["surely_fits"]


def test_without_a_task_file_everything_is_printed(plan: Plan) -> None:
    code, out, err = plan("plan=auto", "chip=H100", "experiment.runner.nnodes=2")
    assert code == 0, err
    text = out.partition("# the task file (task_file=FILE.yaml writes it)\n")[2].partition("# the hostfile")[
        0
    ]
    assert yaml.safe_load(text)["model"]["num_layers"] == 8
    assert not Path("auto.yaml").exists()


def test_data_that_is_not_here_stays_in_the_task_file(plan: Plan) -> None:
    data = ("train.data.mock_data=null", "train.data.data_path=[nowhere]")
    code, _, err = plan("plan=auto", "chip=H100", *data, "task_file=auto.yaml")
    assert code == 0, err
    assert "not needed for an estimate: the files of data_path" in err
    assert yaml.safe_load(Path("auto.yaml").read_text())["data"]["data_path"] == ["nowhere"]


def test_programs_read_the_plan(plan: Plan) -> None:
    code, out, err = plan("plan=auto", "output=json", *TYPED)
    assert code == 0, err
    tree = json.loads(out)
    assert {"stages", "step", "plan"} <= tree.keys()
    assert tree["plan"]["arguments"]["global_batch_size"] == 32
    assert {host["name"] for host in tree["plan"]["hosts"]} <= {"slow", "fast", "other"}
    slower = [one["seconds"] for one in tree["plan"]["alternatives"]]
    assert slower == sorted(slower)
    assert all(seconds >= tree["step"]["seconds"] for seconds in slower)


def test_without_numpy(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flagscale.estimates.auto_plan.find_spec", lambda name: None)
    code, _, err = plan("plan=auto", *TYPED)
    assert code == 2
    assert "plan: the search of plans needs numpy" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train.model.num_layers=48", "train.model.hidden_size=16384"), "does not fit on these devices"),
        (("experiment.task={type:serve,backend:vllm}",), "jobs of `vllm` are not estimated"),
        (("train.model.num_layer=3",), "did you mean `num_layers`?"),
        (("experiment.runner.hostfile=nowhere",), "hostfile not found"),
        (("experiment.runner.per_node_task=true",), "divides one job over all hosts"),
        (("experiment.chips=null",), "`V100` may be V100-32 or V100-16"),
    ],
)
def test_a_mistake_is_a_message_and_exit_code_2(plan: Plan, words: tuple[str, ...], says: str) -> None:
    taken = [word for word in TYPED if word.partition("=")[0] not in {one.partition("=")[0] for one in words}]
    code, out, err = plan("plan=auto", *taken, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err
