"""The wheel, installed apart from the clone: it is complete and works without a clone.

It is built from a copy of the sources, because a build leaves files beside them, and comes first on the
path; `flagscale.__file__` shows that the code that runs is not the clone's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "flagscale": "flagscale",
    "megatron/flagscale": "megatron/flagscale",
    "vllm/vllm_flagscale": "vllm_flagscale",
    "megatron-energon/energon_flagscale": "energon_flagscale",
}
"""Folders of the clone, and their names in the wheel."""
CLONE_ONLY = {"tools/demo.py", "tools/demo_guidance.py", "tools/demo_serve.py", "tools/demo_vlm.py"}
SOURCES = (
    *PACKAGES,
    "examples",
    "tools",
    "requirements",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from these sources."""
    clone = tmp_path_factory.mktemp("clone")
    for name in SOURCES:
        source, target = ROOT / name, clone / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(clone / "dist"), str(clone))
    return next((clone / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the wheel is installed."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--target", str(target), str(wheel))
    return target


def pip(command: str, *words: str) -> None:
    quiet = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "pip", command, *quiet, *words], check=True)


def run(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the wheel's `flagscale ...` in a folder, without GPUs."""
    env = {**os.environ, "PYTHONPATH": str(installed), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(installed / "bin" / "flagscale"), *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def files_of(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_contains_all_packages_and_shared_files(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        f"{name}/{file}"
        for folder, name in PACKAGES.items()
        for file in files_of(ROOT / folder)
        if file.endswith((".py", ".json", ".jinja"))
    }
    for folder in ("examples", "tools", "requirements"):
        expected |= {
            f"flagscale/share/{folder}/{file}"
            for file in files_of(ROOT / folder)
            if f"{folder}/{file}" not in CLONE_ONLY
        }
    assert names == expected


def test_the_installed_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    code = (
        "import flagscale, megatron.flagscale, vllm_flagscale\n"
        "print(flagscale.__file__, megatron.flagscale.__file__, vllm_flagscale.__file__)"
    )
    env = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert all(Path(file).is_relative_to(installed) for file in done.stdout.split())


def test_an_example_can_be_copied_and_planned(installed: Path, tmp_path: Path) -> None:
    copied = run(installed, tmp_path, "examples", "aquila")
    assert copied.returncode == 0, copied.stderr
    where = ("--config-path", "./examples/aquila/conf", "--config-name", "config_7b")
    planned = run(installed, tmp_path, *where, "action=dryrun")
    assert planned.returncode == 0, planned.stderr
    assert f"-m flagscale.node supervise {tmp_path}" in planned.stdout
    assert "PYTHONPATH" not in planned.stdout, "the package `vllm` beside it is vLLM's own"
    assert str(ROOT) not in planned.stdout.replace(sys.executable, "")
    own = run(installed, tmp_path, *where, "action=dryrun", "experiment.envs.PYTHONPATH=/mine")
    assert "#   PYTHONPATH=/mine\n" in own.stdout, own.stderr


@pytest.mark.parametrize(
    ("program", "hint"),
    [
        ("vllm_flagscale.server", ""),
        ("vllm_flagscale.servr", "did you mean `vllm_flagscale.server`?"),
        ("megatron.flagscale.train_gpd", "did you mean `megatron.flagscale.train_gpt`?"),
    ],
)
def test_programs_are_found_among_the_installed_packages(
    installed: Path, tmp_path: Path, program: str, hint: str
) -> None:
    assert run(installed, tmp_path, "examples", "aquila").returncode == 0
    where = ("--config-path", "./examples/aquila/conf", "--config-name", "config_7b", "action=dryrun")
    done = run(installed, tmp_path, *where, f"experiment.task.entrypoint={program}")
    assert (done.returncode, hint in done.stderr) == (2 if hint else 0, True), done.stderr


@pytest.mark.slow
def test_the_tools_prepare_data(installed: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(50):
        (texts / f"{number}.txt").write_text(f"def answer(question: str) -> int:\n    return {number}\n" * 5)
    made = run(installed, tmp_path, "tools/datasets/demo.py", "--source", str(texts))
    assert made.returncode == 0, made.stderr
    sound = run(installed, tmp_path, "tools/datasets/verify.py", "data/demo/train_text_document")
    assert (sound.returncode, sound.stderr) == (0, "")
    assert run(installed, tmp_path, "tools/checkpoint/convert.py", "--help").returncode == 0
