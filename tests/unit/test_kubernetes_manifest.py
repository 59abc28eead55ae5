"""A manifest for Kubernetes: valid objects, the plan that each pod makes of them, no secrets, mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flagscale.cli import main
from flagscale.runners.kubernetes.names import jobset_name
from tests.unit.kubernetes_schema import mistakes

Manifest = Callable[..., list[dict[str, Any]]]
KEY = "experiment.runner.kubernetes"


@pytest.fixture
def line(words: list[str], tmp_path: Path) -> list[str]:
    """The command line of a manifest for two hosts."""
    volumes = f"{KEY}.volumes=[{{claim: data, path: {tmp_path}}}]"
    return [
        *words,
        *(
            "action=dryrun",
            "output=manifest",
            "experiment.runner.nnodes=2",
            "train.model.global_batch_size=4",
        ),
        *(f"{KEY}.image=registry.example.org/flagscale:1", f"{KEY}.secrets_from=tiny", volumes),
    ]


@pytest.fixture
def manifest(line: list[str], capsys: pytest.CaptureFixture[str]) -> Manifest:
    def write(*more: str) -> list[dict[str, Any]]:
        code, printed = main([*line, *more]), capsys.readouterr()
        assert code == 0, printed.err
        assert "do-not-tell" not in printed.out
        found = list(yaml.safe_load_all(printed.out))
        assert [problem for thing in found for problem in mistakes(thing)] == []
        return found

    return write


def jobset(found: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = found[1]["spec"]
    return spec


def job(found: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = jobset(found)["replicatedJobs"][0]["template"]["spec"]
    return spec


def container(found: list[dict[str, Any]]) -> dict[str, Any]:
    first: dict[str, Any] = job(found)["template"]["spec"]["containers"][0]
    return first


def test_every_host_is_a_pod_of_one_indexed_job(manifest: Manifest) -> None:
    found = manifest("experiment.runner.max_restarts=3")
    assert (job(found)["parallelism"], job(found)["completions"]) == (2, 2)
    assert jobset(found)["failurePolicy"]["maxRestarts"] == 3
    values = {one["name"]: one.get("value") for one in container(found)["env"]}
    assert values["PET_NNODES"] == "2"
    assert values["PET_MASTER_ADDR"] == "tiny-hosts-0-0.tiny"
    assert jobset(found)["network"]["subdomain"] == "tiny"


def test_a_wrong_field_is_a_mistake_of_the_schema(manifest: Manifest) -> None:
    found = manifest()
    container(found)["imagee"] = container(found).pop("image")
    assert "'imagee' was unexpected" in "\n".join(mistakes(found[1]))


def test_pods_plan_the_same_job_from_their_configuration(
    manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = manifest("train.model.pipeline_model_parallel_size=2", "experiment.envs.TEXT='$(A) $B'")
    folder = tmp_path / "etc"
    folder.mkdir()
    for name, text in found[0]["data"].items():
        (folder / name).write_text(text)
    for one in container(found)["env"]:
        source = one.get("valueFrom", {})
        value = one.get("value", "1" if "fieldRef" in source else "from-the-secret")
        monkeypatch.setenv(one["name"], value)
    # Kubernetes writes `$` for `$$`, and leaves everything else that names no variable.
    words = [
        word.replace("$$", "$").replace("/etc/flagscale", str(folder)) for word in container(found)["args"]
    ]
    assert main([*words, "action=dryrun"]) == 0
    printed = capsys.readouterr().out
    assert "4 ranks on the platform's hosts, this is host 1, pp2" in printed
    assert "--node-rank 1" in printed
    assert "--master-addr tiny-hosts-0-0.tiny" in printed
    assert "TEXT='$(A) $B'" in printed
    assert "********" in printed


def test_secrets_are_references(manifest: Manifest) -> None:
    found = manifest()
    named = {one["name"]: one["valueFrom"]["secretKeyRef"]["key"] for one in container(found)["env"][4:]}
    assert named == {"SERVICE_TOKEN": "SERVICE_TOKEN", "WANDB_API_KEY": "WANDB_API_KEY"}
    assert "experiment.envs.SERVICE_TOKEN=$${oc.env:SERVICE_TOKEN}" in container(found)["args"]


def test_a_login_of_this_host_is_a_reference_too(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "do-not-tell-anybody")
    found = manifest("train.wandb_project=p", "train.wandb_exp_name=e", "train.wandb_api_key=null")
    assert container(found)["env"][-1]["valueFrom"]["secretKeyRef"]["key"] == "WANDB_API_KEY"


def test_devices_follow_from_the_ranks(manifest: Manifest) -> None:
    keys = (f"{KEY}.resources.memory=200Gi", f"{KEY}.shared_memory=64Gi", "train.model.global_batch_size=16")
    found = manifest("experiment.runner.platform=nvidia", "experiment.runner.nproc_per_node=8", *keys)
    limits = container(found)["resources"]["limits"]
    assert limits.pop("memory") == "200Gi"
    assert list(limits.values()) == ["8"]


def test_texts_that_other_readers_take_for_numbers_are_quoted(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line, f"{KEY}.resources.memory='1e9'", f"{KEY}.node_selector.pool='y'"]) == 0
    printed = capsys.readouterr().out
    assert "memory: '1e9'" in printed
    assert "pool: 'y'" in printed


@pytest.mark.parametrize("type_", ["ssh", "cloud", "slurm"])
def test_the_manifest_is_the_same_for_every_runner(manifest: Manifest, type_: str) -> None:
    assert manifest(f"experiment.runner.type={type_}") == manifest()


def test_all_mistakes_are_reported_at_once(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    more = ("image=null", "secrets_from=null", "name=A_b", "shared_memory=1GB", "node_selector.pool=1%")
    assert main([*line, *(f"{KEY}.{one}" for one in more), "experiment.exp_dir=/elsewhere"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    for what in (
        "`image` is required",
        "a manifest holds no secrets",
        "create a Secret with the keys SERVICE_TOKEN, WANDB_API_KEY",
        "`A_b` cannot name a JobSet",
        "`1GB` is not a quantity",
        "`pool: 1%` cannot be a label",
        "/elsewhere is on no volume",
    ):
        assert what in printed.err


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (f"{KEY}.imag=x", "did you mean `image`?"),
        (f"{KEY}.name={'a' * 60}", "60 characters, 47 at most"),
        (f"{KEY}.volumes=[{{claim: data, path: /, read_only: true}}]", "is on a volume that is read_only"),
        (f"{KEY}.volumes=[{{claim: data, path: data}}]", "absolute path in the pods, not `data`"),
        ("experiment.runner.no_shared_fs=true", "every host runs its own command"),
        ("output=manifests", "valid: text, json, manifest"),
    ],
)
def test_a_mistake(line: list[str], capsys: pytest.CaptureFixture[str], more: str, what: str) -> None:
    assert main([*line, more]) == 2
    assert what in capsys.readouterr().err


def test_hosts_that_differ_are_refused(
    line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts").write_text("a slots=2\nb slots=4\n")
    more = (f"experiment.runner.hostfile={tmp_path}/hosts", "experiment.runner.nproc_per_node=auto")
    assert main([*line, *more, "train.model.global_batch_size=6"]) == 2
    assert "the hosts differ in ranks or type (2 of cpu, 4 of cpu)" in capsys.readouterr().err


def test_other_actions_say_that_a_manifest_is_not_theirs(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line, "action=query"]) == 3
    assert "`output=manifest` has no effect with action=query; it is for dryrun" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "means"), [("Toy_run.1", "toy-run-1"), ("7b", "b"), ("-", ""), ("Ä x", "x")]
)
def test_names_of_experiments_as_dns_takes_them(name: str, means: str) -> None:
    assert jobset_name(name) == means
