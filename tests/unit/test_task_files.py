"""Tasks that a user has written: their names, their data, and mistakes that the harness would not report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flagscale.engines.lm_eval.task_files import read_task_file
from tests.unit.evaluations import SERVED, mistakes, write_task


def test_a_task_file(tmp_path: Path) -> None:
    found = read_task_file(write_task(tmp_path, tag=["mine_all"]))
    assert (found.names, found.is_local, found.needs_probabilities) == (("mine", "mine_all"), True, True)
    assert found.problems == ()
    assert not read_task_file(write_task(tmp_path, "far", dataset_path="allenai/ai2_arc")).is_local


def test_functions_and_included_files_are_read(tmp_path: Path) -> None:
    base = write_task(tmp_path, "base", output_type="generate_until")
    file = tmp_path / "other.yaml"
    file.write_text(f"include: {base.name}\ntask: other\nprocess_docs: !function own.docs\n")
    found = read_task_file(file)
    assert (found.names, found.is_local, found.needs_probabilities) == (("other",), True, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [a", "t.yaml:1: not YAML: "),
        ("task: a\ndoc_to_txt: b\n", "t.yaml: unknown key `doc_to_txt`; did you mean `doc_to_text`?"),
        (
            "task: a\noutput_type: multiple\n",
            "`output_type` cannot be 'multiple'; did you mean `multiple_choice`",
        ),
        ("- a\n", "t.yaml: the keys of a task are expected here"),
        ("include: t.yaml\n", "t.yaml: the file includes itself"),
        ("task: a\ninclude: 7\n", "t.yaml: `include` takes a file or a list of files, not 7"),
        ("task: a\ninclude: {b: c}\n", "t.yaml: `include` takes a file or a list of files"),
        ("task: a\ntag: 7\n", "t.yaml: `tag` takes a name or a list of names, not 7"),
        ("task: a\noutput_type: [b]\n", "`output_type` cannot be ['b']"),
        (
            "task: a\ndataset_path: json\ndataset_kwargs: {data_files: 'a/**b.jsonl'}\n",
            "t.yaml: dataset_kwargs.data_files: a/**b.jsonl: no such file",
        ),
        ("include: none.yaml\n", "none.yaml: cannot be read: No such file or directory"),
        (
            "task: a\ndataset_path: json\ndataset_kwargs: {data_files: {test: [no.jsonl]}}\n",
            "t.yaml: dataset_kwargs.data_files: no.jsonl: no such file",
        ),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.yaml").write_text(text)
    (found,) = read_task_file(tmp_path / "t.yaml").problems
    assert message in found
    keys = {"model_args": {"pretrained": "a/b"}, "tasks": [str(tmp_path / "t.yaml")]}
    assert any(message in one and one.startswith("evaluate.tasks: ") for one in mistakes(tmp_path, keys))
    keys = {**keys, "tasks": ["arc_easy"], "include_path": str(tmp_path)}
    assert any(
        message in one and one.startswith("evaluate.include_path: ") for one in mistakes(tmp_path, keys)
    )


def test_a_file_that_links_to_itself_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").symlink_to("t.yaml")
    (found,) = read_task_file(tmp_path / "t.yaml").problems
    assert "t.yaml: cannot be read: Too many levels of symbolic links" in found


def test_tasks_and_folders_that_do_not_exist(tmp_path: Path) -> None:
    write_task(tmp_path / "tasks", "capitals")
    keys = {"model_args": {"pretrained": "a/b"}, "include_path": str(tmp_path / "tasks")}
    assert mistakes(tmp_path, {**keys, "tasks": ["capitals"]}) == []
    assert mistakes(tmp_path, {**keys, "tasks": "capitals, arc_easy"}) == []
    assert mistakes(tmp_path, {**keys, "tasks": ["cap*"]}) == []
    assert mistakes(tmp_path, {**keys, "tasks": ["capitols"]}) == [
        "evaluate.tasks: unknown task `capitols` | did you mean `capitals`?"
    ]
    (found,) = mistakes(tmp_path, {**keys, "tasks": [str(tmp_path / "tasks")]})
    assert found.endswith("is a folder | name it in `include_path`, and its tasks here")
    (found,) = mistakes(tmp_path, {**keys, "include_path": str(tmp_path / "none")})
    assert found.endswith("none: no such folder")
    (tmp_path / "empty").mkdir()
    (found,) = mistakes(tmp_path, {**keys, "include_path": str(tmp_path / "empty")})
    assert found.endswith("no .yaml file in it has a `task` or a `group`")


@pytest.mark.parametrize(
    ("keys", "in_file", "is_refused"),
    [
        ({"num_fewshot": 2}, {}, True),
        ({}, {"num_fewshot": 2}, True),
        ({"num_fewshot": 2}, {"num_fewshot": 1, "fewshot_config": {"sampler": "first_n"}}, True),
        ({}, {}, False),
        ({"num_fewshot": 0}, {"num_fewshot": 2}, False),
        ({"num_fewshot": 2}, {"num_fewshot": 0}, False),
        ({"num_fewshot": 2}, {"fewshot_split": "test"}, False),
        ({"num_fewshot": 2}, {"fewshot_config": {"split": "test"}}, False),
        ({"num_fewshot": 2}, {"fewshot_config": {"samples": [{"q": "a"}]}}, False),
        ({"num_fewshot": 2}, {"training_split": "train"}, False),
        ({"num_fewshot": 2}, {"validation_split": "validation", "test_split": None}, False),
    ],
)
@pytest.mark.parametrize("name", ["mine", "mi*", ""])
def test_a_question_is_no_example_of_itself(
    tmp_path: Path, keys: dict[str, Any], in_file: dict[str, Any], is_refused: bool, name: str
) -> None:
    file = write_task(tmp_path / "tasks", **{"test_split": "test", **in_file})
    where = {"tasks": [name], "include_path": str(file.parent)} if name else {"tasks": [str(file)]}
    found = mistakes(tmp_path, {"model_args": {"pretrained": "a/b"}, **where, **keys})
    assert [one.partition(": ")[0] for one in found] == ["evaluate.tasks"] * is_refused
    if is_refused:
        assert "may be the asked question itself | give `fewshot_split`" in found[0]


def test_a_chat_server_cannot_run_a_task_that_needs_probabilities(tmp_path: Path) -> None:
    file = write_task(tmp_path)
    args = {"base_url": "http://h:1/v1/chat/completions", "model": "m"}
    keys = {"model": "local-chat-completions", "model_args": args, "apply_chat_template": True}
    (found,) = mistakes(tmp_path, {**keys, "tasks": [str(file)]})
    assert "a chat server does not return the probabilities of given answers" in found
    assert mistakes(tmp_path, {**SERVED, "tasks": [str(file)]}) == []
