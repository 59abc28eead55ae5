"""Every family has the logits of transformers at 700 tokens, in odd shapes."""

from __future__ import annotations

import pytest

from flagscale_testing.conversion import CASES
from flagscale_testing.long_logits import differences
from tests.convert.test_chain import cases

pytestmark = pytest.mark.timeout(1200)  # one run of all models serves every test

FAST = ("Qwen3, yarn",)


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    names = CASES if request.config.getoption("--slow") else FAST
    return differences(names, tmp_path_factory.mktemp("long"))


@pytest.mark.parametrize("name", cases(FAST))
def test_megatron_computes_the_logits_of_transformers(name: str, found: dict[str, float]) -> None:
    assert found[name] < (0.1 if CASES[name].dtype == "bfloat16" else 1e-4)
