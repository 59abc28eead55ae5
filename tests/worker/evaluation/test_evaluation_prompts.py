"""What the harness gives a model: chat templates, and texts that are too long."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.evaluation.conftest import FP32, records_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("is_chat", [False, True])
def test_chat_templates_are_applied_only_if_asked_for(
    evaluate: Callable[..., int], model: Path, tmp_path: Path, is_chat: bool
) -> None:
    """With the template, the examples of a prompt are earlier turns of its conversation (lm_eval 0.4.13)."""
    from flagscale_testing.evaluated import QUESTIONS, reference

    words = ("--pretrained", str(model), *FP32, "--num_fewshot", "1", "--log_samples")
    chat = ("--apply_chat_template",) if is_chat else ()
    assert evaluate(*words, *chat, task=("local_answer",)) == 0
    template = reference(model).tokenizer.apply_chat_template

    def as_text(shown: str, asked: str) -> str:
        turns = [("user", shown), ("assistant", "x"), ("user", asked)]
        messages = [{"role": role, "content": content} for role, content in turns]
        return template(messages, tokenize=False) if is_chat else f"{shown} x\n\n{asked}"

    for record in records_of(tmp_path / "out", "local_answer"):
        asked = QUESTIONS[record["doc_id"]]
        prompt = record["arguments"][0][0]
        assert prompt in {as_text(shown, asked) for shown in QUESTIONS if shown != asked}


def test_texts_that_are_too_long_are_counted(
    evaluate: Callable[..., int], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The harness cuts the beginning of a text that is too long, and goes on (lm_eval 0.4.13)."""
    from flagscale_testing.evaluated import CHOICES, QUESTIONS, reference

    limit, known = 12, reference(model)
    args = ("--model_args", json.dumps({"dtype": "float32", "max_length": limit}))
    assert evaluate("--pretrained", str(model), *args, "--log_samples") == 0
    for record in records_of(tmp_path / "out", "local_choice"):
        question = QUESTIONS[record["doc_id"]]
        for choice, (found, _) in zip(CHOICES, record["filtered_resps"], strict=True):
            ids = known.ids(f"{question} {choice}", bos=True)[-(limit + 1) :]
            expected = sum(known.log_probabilities(ids)[-len(choice) - 1 :])
            assert float(found) == pytest.approx(expected, abs=1e-4)
    warnings = json.loads((tmp_path / "out/models/tiny/results.json").read_text())["warnings"]
    ((_, count),) = [(text, count) for text, count in warnings.items() if "exceeds model's maximum" in text]
    assert count > 1
    assert f"tiny: {count} x Combined length of context (N)" in capsys.readouterr().out
