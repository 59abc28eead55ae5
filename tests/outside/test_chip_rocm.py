"""The package for AMD GPUs in examples/chips/rocm, tested without such a GPU."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from flagscale.platforms import Platform
from tests.outside.conftest import ROOT, Installed

PROCESSOR = "cpu_cores_count 64\nsimd_count 0\nmem_banks_count 1\ndrm_render_minor 0\n"
GPU = "cpu_cores_count 0\nsimd_count 1216\nmem_banks_count 1\ngfx_target_version 90402\ndrm_render_minor {}\n"


@pytest.fixture(scope="module")
def rocm(install: Callable[..., Installed]) -> Installed:
    return install("rocm", source=ROOT / "examples/chips/rocm")


@pytest.fixture
def platform(rocm: Installed, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(rocm.site))
    return importlib.import_module("flagscale_rocm.platform")


@pytest.fixture
def kfd(tmp_path: Path) -> Path:
    """The driver's files for two processors and four GPUs, and for two processes that use GPUs."""
    texts = [PROCESSOR, PROCESSOR, *(GPU.format(minor) for minor in (128, 129, 130, 131))]
    for number, text in enumerate(texts):
        node = tmp_path / "kfd" / "topology" / "nodes" / str(number)
        node.mkdir(parents=True)
        (node / "properties").write_text(text)
    for pid in ("4711", "4712"):
        (tmp_path / "kfd" / "proc" / pid).mkdir(parents=True)
    return tmp_path / "kfd"


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """The device files in a container that was given all four GPUs."""
    (tmp_path / "dev" / "dri").mkdir(parents=True)
    for name in ("kfd", "dri/card0", *(f"dri/renderD{minor}" for minor in (128, 129, 130, 131))):
        (tmp_path / "dev" / name).touch()
    return tmp_path / "dev"


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        ({}, 4),
        ({"ROCR_VISIBLE_DEVICES": ""}, 0),
        ({"ROCR_VISIBLE_DEVICES": "1, 3"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "0,GPU-4b2c1a9f8d3e6f7a"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, 4),
        ({"ROCR_VISIBLE_DEVICES": "0,-1,1"}, 1),
        ({"HIP_VISIBLE_DEVICES": "2"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 2),
        ({"HIP_VISIBLE_DEVICES": "2,3", "CUDA_VISIBLE_DEVICES": "2,3"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "1,3", "HIP_VISIBLE_DEVICES": "0,1"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "1,3", "HIP_VISIBLE_DEVICES": "1,3"}, 1),
    ],
)
def test_gpus_are_counted_as_rocm_counts_them(
    platform: ModuleType, kfd: Path, dev: Path, environ: dict[str, str], count: int
) -> None:
    assert platform.count_gpus(environ, kfd, dev) == count


def test_only_the_gpus_of_a_container_are_counted(platform: ModuleType, kfd: Path, dev: Path) -> None:
    (dev / "dri/renderD128").unlink()
    (dev / "dri/renderD131").unlink()
    assert platform.render_nodes(kfd, dev) == [129, 130]
    (dev / "kfd").unlink()
    assert platform.render_nodes(kfd, dev) == []


def test_a_machine_without_the_driver_has_no_gpus(platform: ModuleType, tmp_path: Path) -> None:
    assert platform.count_gpus({}, tmp_path / "kfd", tmp_path / "dev") == 0
    assert platform.count_gpu_users(tmp_path / "kfd") == 0


def test_a_topology_node_with_simd_units_is_a_gpu(platform: ModuleType) -> None:
    assert platform.gpu_of(GPU.format(131)) == 131
    assert platform.gpu_of(PROCESSOR) is None
    assert platform.gpu_of("") is None


def test_processes_that_use_a_gpu_are_counted(platform: ModuleType, kfd: Path) -> None:
    assert platform.count_gpu_users(kfd) == 2


def test_the_platform_describes_gpus_rather_than_the_host_processor(platform: ModuleType) -> None:
    assert isinstance(platform.ROCM, Platform)
    assert platform.ROCM.visible_devices == "ROCR_VISIBLE_DEVICES"
    assert not platform.ROCM.is_host_processor
    assert not platform.ROCM.shares_devices


def test_a_rank_finds_the_chip_and_the_engine_accepts_its_arguments(rocm: Installed) -> None:
    program = """
import json
from megatron.flagscale.args import engine_parser
from megatron.flagscale.chips import Chip, chip
from megatron.flagscale.ledger import needed
from flagscale import platforms
used = chip()
assert isinstance(used, Chip)
args = engine_parser().parse_args([*used.defaults, f"--distributed-backend={used.backend}"])
groups = sorted({patch.group for patch in needed(used, te_or_apex=True)})
print(json.dumps([used.name, platforms.find("mi300x").name, args.distributed_backend, groups]))
"""
    done = rocm.python("-c", program, env={"FLAGSCALE_CHIP": "rocm"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["rocm", "rocm", "nccl", ["wheel", "worker"]]


def test_a_dry_run_plans_hosts_with_eight_gpus(rocm: Installed, tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("amd0 slots=8 type=MI300X\namd1 slots=8 type=MI300X\n")
    config = ("--config-path", str(ROOT / "examples/aquila/conf"), "--config-name", "config_7b")
    where = (f"experiment.exp_dir={tmp_path / 'run'}", f"experiment.runner.hostfile={hostfile}")
    done = rocm.flagscale(*config, *where, "experiment.runner.nnodes=2", "action=dryrun")
    assert done.returncode == 0, done.stderr
    assert "host 1  amd1  8 ranks  MI300X" in done.stdout
    assert done.stdout.count("#   FLAGSCALE_CHIP=rocm\n") == 2
    assert "distributed-backend" not in done.stdout


def test_a_host_without_such_gpus_is_refused(rocm: Installed, tmp_path: Path) -> None:
    config = ("--config-path", str(ROOT / "examples/aquila/conf"), "--config-name", "config")
    words = (f"experiment.exp_dir={tmp_path}", "+experiment.runner.platform=rocm", "action=check")
    done = rocm.flagscale(*config, *words)
    assert done.returncode == 2
    assert "this host has 0 rocm devices" in done.stderr


def test_a_server_sees_only_its_own_gpus(rocm: Installed) -> None:
    program = """
from flagscale.node.devices import device_environment
from flagscale.values import Host, Service
print(device_environment(Service("one", (), devices=(2, 3)), Host(0, "localhost", 4, "MI300X")))
"""
    done = rocm.python("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'ROCR_VISIBLE_DEVICES': '2,3'}"
