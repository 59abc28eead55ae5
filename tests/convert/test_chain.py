"""Every family is converted there and back: bit for bit, with Megatron's own model, and with a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale_testing.conversion import CASES, Outcome, run_chain

pytestmark = pytest.mark.timeout(1200)  # one run of all ranks serves every test

# One model per family, with both kinds of embeddings; the others differ from these only in settings.
FAST = (
    *("Llama 3.2, tied", "Mixtral", "Qwen2, 2.5", "Qwen3, tied", "gpt-oss", "DeepSeek-V3, MTP"),
    *("Gemma-2", "Gemma-3"),
)
TRAINED = ("Mixtral",)


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    slow = request.config.getoption("--slow")
    folder: Path = tmp_path_factory.mktemp("chain")
    return run_chain(CASES, folder) if slow else run_chain(FAST, folder, TRAINED, layouts=1)


def cases(names: tuple[str, ...]) -> list[object]:
    """Return all cases as parameters; those that are not named need `--slow`."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in CASES]


@pytest.mark.parametrize("name", cases(FAST))
def test_a_round_trip_is_bitwise_equal(name: str, outcomes: dict[str, Outcome]) -> None:
    assert not outcomes[name].error
    assert outcomes[name].round_trip


@pytest.mark.parametrize("name", cases(FAST))
def test_megatron_computes_the_same_logits_as_transformers(name: str, outcomes: dict[str, Outcome]) -> None:
    assert outcomes[name].logits < (0.1 if CASES[name].dtype == "bfloat16" else 1e-4)


@pytest.mark.parametrize("name", cases(TRAINED))
def test_a_training_loads_and_saves_the_converted_model(name: str, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[name]
    assert outcome.trained
    assert outcome.loss is not None
    if CASES[name].padded:  # rows that pad the vocabulary take part in the softmax
        assert 1e-3 < outcome.loss < 0.1
    else:
        assert outcome.loss < (1e-2 if CASES[name].dtype == "bfloat16" else 1e-5)
