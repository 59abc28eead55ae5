"""Which models are Emu3, and what an engine of one is given."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from vllm_flagscale.emu3.wiring import GRID_PROCESSOR, WORKER_EXTENSION, is_emu3, wire
from vllm_flagscale.guidance.wiring import PROCESSOR, SCHEDULER


def given(model: Path | str, **more: Any) -> argparse.Namespace:
    """Return the arguments of an engine, as they are without any of its own."""
    names: dict[str, Any] = {"guidance": False, "scheduler_cls": None, "logits_processors": None}
    names |= {"worker_extension_cls": "", "hf_config_path": None, "revision": None, "model": str(model)}
    return argparse.Namespace(**{**names, **more})


def folder(path: Path, kind: str) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": kind}))
    return path


def test_an_emu3_is_known_by_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emu3, other = folder(tmp_path / "a", "emu3"), folder(tmp_path / "b", "llama")
    assert is_emu3(given(emu3))
    assert not is_emu3(given(other))
    assert is_emu3(given("unused", model_tag=str(emu3)))
    assert is_emu3(given(other, hf_config_path=str(emu3)))
    assert not is_emu3(given(emu3, hf_config_path=str(other)))
    (tmp_path / "empty").mkdir()
    for elsewhere in (tmp_path / "empty", tmp_path / "a.gguf", "s3://bucket/emu3"):
        assert not is_emu3(given(elsewhere))

    cache = tmp_path / "hub/models--owner--emu"
    folder(cache / "snapshots/1234", "emu3")
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("1234")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert is_emu3(given("owner/emu"))


def test_its_engine_draws(tmp_path: Path) -> None:
    arguments = given(folder(tmp_path / "a", "emu3"), logits_processors=["own:Processor"])
    for _ in range(2):
        wire(arguments)  # safe to repeat
        assert (arguments.guidance, arguments.scheduler_cls) == (True, SCHEDULER)
        assert arguments.logits_processors == ["own:Processor", GRID_PROCESSOR, PROCESSOR]
        assert arguments.worker_extension_cls == WORKER_EXTENSION
    other = given(folder(tmp_path / "b", "llama"))
    wire(other)
    assert other == given(tmp_path / "b")


def test_another_worker_extension_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        wire(given(folder(tmp_path / "a", "emu3"), worker_extension_cls="own.Extension"))
    assert ended.value.code == 2
    assert "--worker-extension-cls own.Extension cannot be combined with Emu3" in capsys.readouterr().out


@pytest.mark.parametrize("degree", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_a_divided_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], degree: str) -> None:
    for kind, is_refused in (("emu3", True), ("llama", False)):
        arguments = given(folder(tmp_path / kind, kind), **{degree: 2})
        if is_refused:
            with pytest.raises(SystemExit, match="2"):
                wire(arguments)
            assert f"`{degree}` 2 is not supported with Emu3" in capsys.readouterr().out
        else:
            wire(arguments)
