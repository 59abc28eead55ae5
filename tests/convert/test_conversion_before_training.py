"""The conversion of a Hugging Face folder that a training starts from: made once, completely."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from flagscale.errors import UserError
from flagscale.files import locked
from flagscale.run.base import base_folder, identity
from flagscale.run.checkpoints import TRACKER
from megatron.flagscale.checkpoint import huggingface
from megatron.flagscale.checkpoint.huggingface import checkpoints_of, converted, place_of


@pytest.fixture
def source(copy: Callable[[str, str], Path]) -> Path:
    return copy("Qwen2, 2.5", "hf")


def convert_here(source: Path, folder: Path) -> Path:
    return converted(source, folder, converts=True)


def test_it_is_used_again_until_a_file_changes(source: Path, tmp_path: Path) -> None:
    first = convert_here(source, tmp_path / "made")
    made = (first / TRACKER).stat().st_mtime_ns
    assert convert_here(source, tmp_path / "made") == first
    assert converted(source, tmp_path / "made", converts=False) == first
    assert (first / TRACKER).stat().st_mtime_ns == made
    (source / "config.json").write_text((source / "config.json").read_text() + "\n")
    second = convert_here(source, tmp_path / "made")
    assert second != first
    # The same weights are the same base for adapters.
    assert identity(base_folder(second)) == identity(base_folder(first))


def test_a_damaged_one_is_made_again(source: Path, tmp_path: Path) -> None:
    made = convert_here(source, tmp_path / "made")
    (weights,) = made.rglob("*.distcp")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert convert_here(source, tmp_path / "made") == made
    assert weights.read_bytes() == whole


def test_a_kill_leaves_nothing_half_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **counts: float) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    target = place_of(source, tmp_path / "made")
    child = os.fork()
    if not child:
        monkeypatch.setattr(huggingface._Progress, "advance", die)
        convert_here(source, tmp_path / "made")
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert not target.exists()
    assert convert_here(source, tmp_path / "made") == target
    left = sorted(one.name for one in (tmp_path / "made").iterdir())
    assert left == [f".{target.name}.lock", target.name]


def test_another_host_waits_for_the_one_that_converts(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile it shows its supervisor that it lives."""
    waits, found = threading.Event(), []
    monkeypatch.setattr(huggingface, "heartbeat", waits.set)
    target = place_of(source, tmp_path / "made")
    other = threading.Thread(target=lambda: found.append(convert_here(source, tmp_path / "made")))
    with locked(tmp_path / "made" / f".{target.name}.lock"):
        other.start()
        assert waits.wait(60)
        assert not target.exists()
    other.join()
    assert found == [target]
    assert (target / TRACKER).is_file()


def test_a_model_that_cannot_be_converted(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        convert_here(source, tmp_path / "made")
    assert not place_of(source, tmp_path / "made").exists()
    (tmp_path / "a file").touch()
    with pytest.raises(UserError, match="cannot be converted to"):
        convert_here(source, tmp_path / "a file")


def test_a_run_that_continues_does_not_need_it(
    source: Path, models: Callable[[str], Path], tmp_path: Path
) -> None:
    own = shutil.copytree(models("Qwen2, 2.5") / "megatron", tmp_path / "own")
    run = {"pretrained_checkpoint": str(source), "load": str(own), "converted_dir": str(tmp_path / "made")}
    assert checkpoints_of(Namespace(**run)) is None
    assert checkpoints_of(Namespace(**{**run, "pretrained_checkpoint": str(own)})) is None
    assert not (tmp_path / "made").exists()


def test_the_ranks_too_refuse_the_arguments_of_another_model(source: Path, tmp_path: Path) -> None:
    run = {"pretrained_checkpoint": str(source), "load": None, "converted_dir": str(tmp_path / "made")}
    with pytest.raises(UserError) as refused:
        checkpoints_of(Namespace(**run, hidden_size=32, num_layers=4, rotary_base=10000))
    assert [problem.where for problem in refused.value.problems] == ["--hidden-size", "--rotary-base"]
    assert f"`hidden_size` is 32, but {source}/config.json has 64" in refused.value.problems[0].what
    assert not (tmp_path / "made").exists()
