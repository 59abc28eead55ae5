"""Run the tests of `tests/inside_vllm` in a process that has imported vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale_testing import forked_python
from tests.e2e.test_serve import has_vllm

FOLDER = Path(__file__).parents[1] / "inside_vllm"


@pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)")
@pytest.mark.timeout(900)
def test_inside_vllm(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    words = [
        "--quiet",
        "--no-cov",
        "-p",
        "no:cacheprovider",
        f"--basetemp={tmp_path / 'inside'}",
        str(FOLDER),
    ]
    slow = ["--slow"] if request.config.getoption("--slow") else []
    done = forked_python.python("vllm.engine.arg_utils", "-m", "pytest", *words, *slow)
    assert done.returncode == 0, done.stdout + done.stderr
