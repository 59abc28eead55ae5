"""Platforms: counting devices and choosing one."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale import platforms
from flagscale.errors import UserError
from flagscale.planner.chips import chip_table
from flagscale.platforms.nvidia import count_gpus


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """A `/dev` with four GPUs and NVIDIA's other device files."""
    for name in (
        "nvidia0",
        "nvidia1",
        "nvidia2",
        "nvidia10",
        "nvidiactl",
        "nvidia-uvm",
        "nvidia-modeset",
        "null",
    ):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        ({}, 4),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": " 0, 2 "}, 2),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, 4),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8a1b,GPU-9c2d"}, 2),
    ],
)
def test_gpus_are_counted_as_by_cuda(dev: Path, environ: dict[str, str], count: int) -> None:
    assert count_gpus(environ, dev) == count


def test_without_gpus_the_count_is_zero(tmp_path: Path) -> None:
    assert count_gpus({}, tmp_path) == 0
    assert count_gpus({}, tmp_path / "missing") == 0


def test_a_platform_is_found_by_its_name_or_a_chip() -> None:
    assert platforms.find("cpu").name == "cpu"
    assert platforms.find("nvidia").name == "nvidia"
    assert platforms.find("A800").name == "nvidia"
    assert platforms.find("h100").name == "nvidia"


OF_OTHER_MAKERS = (
    *("MI300X", "MI325X", "MI355X", "Ascend910B", "Ascend910C", "MTT-S4000", "MTT-S5000", "MetaX-C500"),
    *("Iluvatar-BI-V150", "Cambricon-MLU590", "Kunlun-R300", "Hygon-K100", "Gaudi2", "Gaudi3"),
)


@pytest.mark.parametrize("name", [name for name in chip_table() if name not in OF_OTHER_MAKERS])
def test_a_hostfile_can_name_every_chip_that_an_estimate_knows(name: str) -> None:
    assert platforms.find(name).name == "nvidia"
    assert platforms.find(name.lower()).name == "nvidia"


@pytest.mark.parametrize("name", ["A100-", "A100-PCIe", "A1000", "-80", *OF_OTHER_MAKERS])
def test_other_names_are_no_chips_of_the_platform(name: str) -> None:
    with pytest.raises(UserError, match="unknown platform"):
        platforms.find(name)


def test_an_unknown_platform_is_an_error() -> None:
    with pytest.raises(UserError, match="unknown platform `nvidai`") as raised:
        platforms.find("nvidai", "hosts:3")
    assert raised.value.problems[0].where == "hosts:3"
    assert raised.value.problems[0].hint == "did you mean `nvidia`?"


def test_for_an_estimate_every_name_is_a_platform() -> None:
    with platforms.any_platform():
        found = platforms.find("Ascend910B")
        assert (found.name, found.is_host_processor, found.count_devices({})) == ("Ascend910B", False, 0)
        assert platforms.has_chip(found)
        assert platforms.find("A800").name == "nvidia"
        assert platforms.find("cpu").is_host_processor
    with pytest.raises(UserError, match="unknown platform"):
        platforms.find("Ascend910B")


def test_auto_is_cpu_if_no_chip_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert platforms.find("auto").name == "cpu"


def test_ranks_on_cpu_share_it_and_do_not_see_gpus() -> None:
    cpu = platforms.find("cpu")
    assert cpu.count_devices({}) == 1
    assert cpu.shares_devices
    assert cpu.env["CUDA_VISIBLE_DEVICES"] == ""
    assert not platforms.find("nvidia").shares_devices
