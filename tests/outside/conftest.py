"""Extensions as external authors would write them: each folder here is a package that a test installs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Installed:
    """A folder with one outside package installed in it, used in addition to this project's environment."""

    site: Path
    folder: Path
    """An empty working directory for commands."""

    def environment(self, **more: str) -> dict[str, str]:
        """Return an environment in which the package and its entry points are found."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        return {**inherited, "PYTHONPATH": f"{self.site}:{ROOT}", "OMP_NUM_THREADS": "1", **more}

    def python(
        self, *words: str, timeout: float = 120, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python command line in the working directory, and capture both output streams."""
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=self.environment(**(env or {})),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def flagscale(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run FlagScale with these arguments, as `python run.py` does."""
        return self.python(str(ROOT / "run.py"), *words, timeout=timeout)


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Installed]:
    """Return a function that installs `tests/outside/NAME`, or the folder `source`, once per session."""
    known: dict[Path, Installed] = {}

    def install(name: str, source: Path | None = None) -> Installed:
        package = (source or HERE / name).resolve()
        if package not in known:
            site = tmp_path_factory.mktemp(f"site_{name}")
            # Build from a copy, because building leaves files next to the sources.
            copy = tmp_path_factory.mktemp(f"source_{name}") / name
            subprocess.run(["cp", "-r", str(package), str(copy)], check=True)
            words = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
            subprocess.run([sys.executable, *words, "--target", str(site), str(copy)], check=True)
            known[package] = Installed(site, tmp_path_factory.mktemp(f"work_{name}"))
        return known[package]

    return install
