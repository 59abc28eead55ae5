"""Plans as task files: what they say, what they replace, and that the launcher takes them."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from flagscale.checks.hetero import keys as hetero_keys
from flagscale.cli import main
from flagscale.frozen import replace
from flagscale.planner.chips import Chip, Link
from flagscale.planner.search.cluster import Cluster, Pool
from flagscale.planner.search.mesh_options import rule_values
from flagscale.planner.search.plans import best_plans
from flagscale.planner.search.task_file import task_file
from flagscale.planner.search.trainings import Rated
from tests.unit.test_plan_search import training

CONF = Path(__file__).parents[2] / "examples" / "aquila" / "conf"
H800 = Chip("H800", {"bfloat16": 900e12}, 80e9, 3e12, Link(200e9), Link(50e9), 8)
A800 = Chip("A800", {"bfloat16": 300e12}, 40e9, 2e12, Link(200e9), Link(25e9), 8)
CLUSTERS = {
    "mixed": Cluster((Pool("H800", H800, 1, 8), Pool("A800", A800, 1, 8))),
    # Too little memory to keep all activations.
    "tight": Cluster((Pool("A800", replace(A800, memory_bytes=26e9), 1, 8),)),
    # Three stages, which do not divide 32 layers.
    "uneven": Cluster((Pool("A800", A800, 1, 6),)),
}


@functools.cache
def best_plan(cluster: str) -> Rated:
    """Return the best plan of one of the clusters."""
    template = training(batch=96)
    values = {**rule_values(template), "make_vocab_size_divisible_by": 64}
    return best_plans(template, CLUSTERS[cluster], values).best


def flat(keys: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in keys.items():
        found |= flat(value) if isinstance(value, Mapping) else {name: value}
    return found


def test_a_mixed_plan_is_read_back_as_its_layout() -> None:
    best = best_plan("mixed")
    found = flat(yaml.safe_load(task_file({}, best)))
    layout, problems = hetero_keys.read(found, 32)
    assert not problems
    assert layout
    for mesh, written in zip(best.training.layout.meshes, layout.meshes, strict=True):
        assert written == replace(mesh, sp=mesh.sp or None)
    assert found["micro_batch_size"] == best.training.blocks[0].micro_batch


def test_what_the_user_gave_is_replaced_where_it_stands_and_the_rest_is_kept() -> None:
    keys = {
        "system": {"tensor_model_parallel_size": 3, "recompute_granularity": "full", "bf16": True},
        "model": {
            "micro_batch_size": 7,
            "text": "a: b #c",
            "lr": 1e-5,
            "nested": {"context_parallel_size": 5},
        },
    }
    best = best_plan("uneven")
    found = yaml.safe_load(task_file(keys, best, ("Because.",)))
    assert found["system"]["tensor_model_parallel_size"] == best.training.layout.meshes[0].tp
    assert found["model"]["micro_batch_size"] == best.training.blocks[0].micro_batch
    assert found["model"]["text"] == "a: b #c"
    assert found["model"]["lr"] == 1e-5
    assert found["system"]["bf16"] is True
    assert flat(found).get("recompute_granularity") == best.arguments.get("recompute_granularity")


def test_an_inheriting_file_holds_what_differs_only() -> None:
    best = best_plan("mixed")
    keys = {"system": {"tensor_model_parallel_size": 2, "bf16": True}, "model": {"micro_batch_size": 9}}
    found = yaml.safe_load(task_file(keys, best, base="mine"))
    assert found["defaults"] == ["mine", "_self_"]
    assert found["system"]["tensor_model_parallel_size"] is None
    assert "bf16" not in found["system"]
    assert found["model"] == {"micro_batch_size": best.training.blocks[0].micro_batch}


def test_the_comment_says_why_and_which_hosts() -> None:
    best = best_plan("mixed")
    text = task_file({}, best, ("The runner-up lost.",))
    comment = [line for line in text.splitlines() if line.startswith("#")]
    assert "s per step" in comment[0]
    assert any("slots=8 type=H800" in line for line in comment)
    assert comment[-1] == "# The runner-up lost."


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_the_launcher_takes_every_plan(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "train").mkdir(parents=True)
    for name in ("aquila_7b", "aquila_common"):
        shutil.copy(CONF / "train" / f"{name}.yaml", tmp_path / "conf" / "train")
    config = (CONF / "config_7b.yaml").read_text().replace("aquila_7b", "found")
    best = best_plan(cluster)
    hosts = [
        f"host{number} slots={mesh.ranks} type={mesh.type}"
        for number, mesh in enumerate(best.training.layout.meshes)
    ]
    (tmp_path / "hosts").write_text("\n".join(hosts))
    (tmp_path / "conf" / "config.yaml").write_text(config)
    given = _sections()
    (tmp_path / "conf" / "train" / "found.yaml").write_text(task_file(given, best, base="aquila_7b"))
    overrides = [
        "experiment.runner.hostfile=hosts",
        "~experiment.runner.nproc_per_node",
        "~experiment.runner.platform",
        *("++train.model.num_layers=32", "++train.model.global_batch_size=96"),
        *("++train.model.hidden_size=4096", "++train.model.ffn_hidden_size=14336"),
        *("++train.model.group_query_attention=true", "++train.model.num_query_groups=8"),
        *("++train.model.seq_length=4096", "++train.model.max_position_embeddings=4096"),
    ]
    code = main(["--config-path", "conf", "--config-name", "config", "action=dryrun", *overrides])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert str(best.training.layout).split(" | ")[0] in printed.out


def _sections() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("aquila_common", "aquila_7b"):
        for section, given in yaml.safe_load((CONF / "train" / f"{name}.yaml").read_text()).items():
            if isinstance(given, dict):
                found[section] = {**found.get(section, {}), **given}
    return found
