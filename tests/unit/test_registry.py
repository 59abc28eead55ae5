"""Names of engines, platforms and transports: ours and those of installed packages, imported on use."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flagscale import platforms, registry
from flagscale.errors import UserError


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install a package that brings a platform and tries to replace one of ours; return its module's name."""
    (tmp_path / "thirdparty_chips.py").write_text(
        "from flagscale.platforms import Platform\n"
        "NPU = Platform('npu', lambda environ: 3, chips=('X910',))\n"
        "FALSE_CPU = Platform('false', lambda environ: 99)\n"
    )
    info = tmp_path / "thirdparty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[flagscale.platforms]\nnpu = thirdparty_chips:NPU\ncpu = thirdparty_chips:FALSE_CPU\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "thirdparty_chips", raising=False)
    return "thirdparty_chips"


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, table in registry.BUILT_IN.items() for n in table])
def test_every_built_in_name_can_be_loaded(kind: str, name: str) -> None:
    assert registry.load(kind, name) is not None


@pytest.mark.parametrize("name", platforms.BUILT_IN)
def test_every_platform_has_the_name_it_is_found_by(name: str) -> None:
    assert platforms.find(name).name == name


def test_an_unknown_name_is_a_mistake_with_the_nearest_one() -> None:
    with pytest.raises(UserError) as raised:
        registry.load("engines", "megatorn", "experiment.task.backend")
    (problem,) = raised.value.problems
    assert problem.what == "unknown engine `megatorn`"
    assert problem.where == "experiment.task.backend"
    assert problem.hint == "did you mean `megatron`?"


def test_an_installed_package_adds_a_name_and_is_not_imported_for_asking(installed: str) -> None:
    assert "npu" in registry.names("platforms", platforms.BUILT_IN)
    assert installed not in sys.modules
    assert platforms.find("npu").count_devices({}) == 3
    assert platforms.find("x910").name == "npu"


def test_a_built_in_name_cannot_be_replaced(installed: str) -> None:
    assert platforms.find("cpu").name == "cpu"


def test_auto_finds_an_installed_chip(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert platforms.find("auto").name == "npu"
