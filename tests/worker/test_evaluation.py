"""The harness on tiny models: scores computed apart, servers and checkpoints, and what surprises in it.

The harness takes seconds to import, so these tests are slow; `pip install 'flagscale[evaluate]'`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytestmark = pytest.mark.slow

MISSING = "lm_eval is not installed (pip install 'flagscale[evaluate]')"


@pytest.fixture(scope="module", autouse=True)
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the caches of the harness out of the user's, and the network out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        pytest.importorskip("lm_eval", reason=MISSING)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flagscale_testing.evaluated import write_model

    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flagscale_testing.evaluated import write_tasks

    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def evaluate(tmp_path: Path, tasks: Path) -> Callable[..., int]:
    """Return a function that runs the program with further words, and returns its exit code."""

    def run(*words: str, task: tuple[str, ...] = ("local_choice",)) -> int:
        from megatron.flagscale.evaluation.evaluate import main

        return main(
            [*("--tasks", *task), "--include_path", str(tasks), *words, "--output", str(tmp_path / "out")]
        )

    return run


def scores_in(folder: Path) -> dict[tuple[str, str], float]:
    """Return the scores of a run by model and metric."""
    return {
        (one["model"], one["metric"]): one["value"]
        for one in json.loads((folder / "results.json").read_text())
    }


def records_of(folder: Path, task: str) -> list[dict[str, Any]]:
    """Return what a run kept of the examples of the model `tiny`, in the order of the examples."""
    lines = (folder / f"models/tiny/{task}.jsonl").read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda record: record["doc_id"])


FP32 = ("--model_args", '{"dtype": "float32"}')


def test_scores_of_a_folder_are_those_computed_apart(
    evaluate: Callable[..., int],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from flagscale.run.env import PROGRESS_FILE
    from flagscale_testing.evaluated import QUESTIONS, accuracies, reference

    monkeypatch.setenv(PROGRESS_FILE, str(tmp_path / "progress.json"))
    words = ("--pretrained", str(model), *FP32, "--log_samples", "--batch_size", "4")
    assert evaluate(*words, task=("local_choice", "local_answer")) == 0
    out, expected = tmp_path / "out", reference(model)
    right = expected.choices(bos=True)
    acc, normed = accuracies(right)
    found = scores_in(out)
    assert found == {("tiny", "acc"): acc, ("tiny", "acc_norm"): normed, ("tiny", "exact_match"): 0.0}
    assert 0 < acc < 1, "a score that every mistake would give shows nothing"
    records = records_of(out, "local_choice")
    assert len(records) == len(QUESTIONS)
    for record, one in zip(records, right, strict=True):
        assert [float(pair[0]) for pair in record["filtered_resps"]] == pytest.approx(one, abs=1e-4)
    answers = [record["filtered_resps"][0] for record in records_of(out, "local_answer")]
    assert answers == expected.answers()
    printed = capsys.readouterr().out
    assert re.search(rf"local_choice +acc ↑ +{acc:.4f} +0\.\d+ +0 +{len(QUESTIONS)}", printed)
    assert (out / "results.txt").read_text() in printed
    assert not (out / "results.svg").exists(), "a picture compares models"
    total = len(QUESTIONS) * 4
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert progress == {"done": total, "total": total, "unit": "requests", "tokens_per_s": None}


def test_checkpoints_are_converted_and_compared(
    evaluate: Callable[..., int], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flagscale_testing.evaluated import accuracies, reference, write_model
    from megatron.flagscale.convert.convert import convert

    folder = tmp_path / "checkpoints"
    for iteration, seed in ((10, 0), (20, 1)):
        made = convert(write_model(tmp_path / f"hf_{seed}", seed), tmp_path / f"mg_{seed}")
        (release,) = made.target.glob("release")
        shutil.copytree(release, folder / f"iter_{iteration:07d}")
    words = ("--checkpoints", str(folder), "--iterations", "all", *FP32)
    assert evaluate(*words) == 2
    printed = capsys.readouterr().out
    assert "flagscale: error: no tokenizer is stored with this checkpoint (2 places)" in printed
    assert f"{folder}/iter_0000010" in printed
    (folder / "iter_0000020" / ".metadata").rename(tmp_path / "metadata")
    (folder / "iter_0000020" / "manifest.json").rename(tmp_path / "manifest")
    assert evaluate("--checkpoints", str(folder), "--iterations", "15", "20", *FP32) == 2
    printed = capsys.readouterr().out
    assert f"{folder}: no checkpoint of iteration 15 found; there are 20, 10" in printed
    assert f"{folder}/iter_0000020: the checkpoint cannot be used: its save was not finished" in printed
    (tmp_path / "metadata").rename(folder / "iter_0000020" / ".metadata")
    (tmp_path / "manifest").rename(folder / "iter_0000020" / "manifest.json")
    (folder / "iter_0000030").mkdir()
    assert evaluate(*words, "--tokenizer", str(model)) == 0
    assert f"{folder}/iter_0000030 is left out: its save was not finished" in capsys.readouterr().out
    out, found = tmp_path / "out", scores_in(tmp_path / "out")
    for iteration, seed in ((10, 0), (20, 1)):
        acc, normed = accuracies(reference(tmp_path / f"hf_{seed}").choices(bos=True))
        name = f"iter_{iteration:07d}"
        assert (found[name, "acc"], found[name, "acc_norm"]) == (acc, normed)
    assert {one["iteration"] for one in json.loads((out / "results.json").read_text())} == {10, 20}
    assert ">iteration<" in (out / "results.svg").read_text()
    assert not list((out / "converted").iterdir()), "what was converted is removed"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"doc_to_text": "{{nothing}}"}, "`bad` cannot be loaded: UndefinedError: 'nothing' is undefined"),
        ({"test_split": "tests"}, "`bad` cannot be loaded: KeyError: 'tests'"),
        (
            {"metric_list": [{"metric": "accu", "aggregation": "mean", "higher_is_better": True}]},
            "task `bad`: unknown metric `accu`; did you mean `acc`?",
        ),
    ],
)
def test_mistakes_in_a_task_are_reported_before_a_model_is_opened(
    evaluate: Callable[..., int],
    tasks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    keys: dict[str, Any],
    message: str,
) -> None:
    task = json.loads((tasks / "local_choice.yaml").read_text())
    (tmp_path / "bad.yaml").write_text(json.dumps({**task, "task": "bad", **keys}))
    words = ("--pretrained", str(tmp_path / "missing"), "--include_path", str(tmp_path))
    assert evaluate(*words, task=("bad",)) == 2
    assert f"flagscale: error: task {message.removeprefix('task ')}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--checkpoints", "{}", "--iterations", "30"), ("--checkpoints", "{}")])
def test_a_missing_checkpoint_ends_it_with_code_2(
    evaluate: Callable[..., int], tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(*(word.format(tmp_path) for word in words)) == 2
    assert "flagscale: error: " in capsys.readouterr().out
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.fixture
def server(model: Path) -> Iterator[str]:
    """A server that returns the model's probabilities of given ids, as vLLM does; yield its address."""
    from flagscale_testing.evaluated import reference

    known = reference(model)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send({"data": [{"id": "tiny"}]} if self.path == "/v1/models" else None)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            choices = []
            for index, ids in enumerate(asked["prompt"]):
                found: list[Any] = [None, *known.log_probabilities(ids), -1.0]  # the last one: the new token
                top = [None, *({"x": 0.0} for _ in found[1:])]
                choices.append({"index": index, "logprobs": {"token_logprobs": found, "top_logprobs": top}})
            self._send({"choices": choices})

        def _send(self, answer: Any) -> None:
            body = json.dumps(answer).encode()
            self.send_response(200 if answer else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()


@pytest.mark.parametrize("bos", [None, True])
def test_a_server_gets_no_bos_unless_it_is_asked_for(
    evaluate: Callable[..., int], server: str, model: Path, tmp_path: Path, bos: bool | None
) -> None:
    """`hf` begins texts as the tokenizer does, `local-completions` without BOS (lm_eval 0.4.13)."""
    from flagscale_testing.evaluated import accuracies, reference

    args = {"base_url": f"{server}/v1/completions", "model": "tiny"} | ({"add_bos_token": bos} if bos else {})
    words = ("--model", "local-completions", "--model_args", json.dumps(args), "--tokenizer", str(model))
    assert evaluate(*words, "--log_samples") == 0
    right = reference(model).choices(bos=bool(bos))
    for record, one in zip(records_of(tmp_path / "out", "local_choice"), right, strict=True):
        assert [float(pair[0]) for pair in record["filtered_resps"]] == pytest.approx(one, abs=1e-4)
    assert scores_in(tmp_path / "out")["tiny", "acc"] == accuracies(right)[0]


def test_a_server_that_does_not_answer_or_serves_another_model(
    evaluate: Callable[..., int], server: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def words(address: str, name: str) -> tuple[str, ...]:
        args = {"base_url": f"{address}/v1/completions", "model": name}
        return ("--model", "local-completions", "--model_args", json.dumps(args), "--tokenizer", str(model))

    assert evaluate(*words(server, "other")) == 2
    assert "does not serve `other` (model_args.model) served: tiny" in capsys.readouterr().out
    assert evaluate(*words("http://127.0.0.1:1", "tiny")) == 2
    assert "http://127.0.0.1:1/v1/models cannot be read: " in capsys.readouterr().out


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


def test_the_catalog_is_that_of_the_installed_harness() -> None:
    from flagscale.engines.lm_eval.catalog import harness_catalog, task_names
    from megatron.flagscale.evaluation.catalog import build_catalog, packed

    names = {"arc", "arc_easy", "arc_easy_mt", "lambada"}
    assert task_names(packed(names)) == names
    built = build_catalog()
    known = harness_catalog()
    assert (built["engine"], built["version"]) == (known.run.engine, known.run.version), "make catalog"
    assert {*built["arguments"]} == {*known.run.options}
    assert task_names(built["tasks"]) == known.tasks
    assert {*built["task_keys"]} == known.task_keys
    assert tuple(built["output_types"]) == known.output_types
