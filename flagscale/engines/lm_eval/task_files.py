"""Tasks that a user has written as YAML: their names, the data that they read, and mistakes in their form."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flagscale.engines.lm_eval.catalog import harness_catalog
from flagscale.errors import nearest, short
from flagscale.files import read_regular_text

_LOCAL_READERS = ("json", "csv", "parquet", "text", "arrow")
"""Values of `dataset_path` with which the package `datasets` reads local files."""
_IGNORED = ("__pycache__", ".ipynb_checkpoints")


@dataclass(frozen=True)
class TaskFile:
    """A YAML file of the harness, as far as it can be checked without it."""

    path: Path
    names: tuple[str, ...] = ()
    """What the file defines: a task or a group first, then its tags; none if other files include it."""
    needs_probabilities: bool = False
    """Whether the model has to return the probabilities of given texts, which a chat endpoint cannot."""
    is_local: bool = False
    """Whether its data are local files."""
    num_fewshot: int | None = None
    """The number of examples that the file itself asks for."""
    asks_its_examples: bool = False
    """Whether the examples in a prompt are drawn from the questions, and may be the one that is asked."""
    problems: tuple[str, ...] = ()


class _Loader(yaml.SafeLoader):
    """Reads the harness's tags (`!function module.name`) as nothing."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def task_files_in(folder: Path) -> Iterator[TaskFile]:
    """Yield the task files of a folder and its subfolders, in order, as the harness searches them."""
    for path in sorted(folder.glob("**/*.yaml")):
        if not any(part in _IGNORED for part in path.parts):
            yield read_task_file(path)


def read_task_file(path: Path, cwd: Path = Path()) -> TaskFile:
    """Read a task file; paths of its data are relative to `cwd`, where the job starts."""
    try:
        config = _read(path)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        # It may be a file that this one includes.
        blamed = getattr(error, "filename", None) or path
        return TaskFile(path, problems=(f"{blamed}: cannot be read: {why}",))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        return TaskFile(path, problems=(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}",))
    except ValueError as error:
        return TaskFile(path, problems=(str(error),))
    named = [config[key] for key in ("task", "group") if isinstance(config.get(key), str)]
    tags = config.get("tag")
    files = [*_data_files(config)]
    wrong = [f"{path}: {what}" for what in _wrong_keys(config)]
    missing = [file for file in files if "://" not in file and not _exists(cwd, file)]
    return TaskFile(
        path,
        names=(*named, *_texts(tags)),
        needs_probabilities=config.get("output_type", "generate_until") != "generate_until",
        num_fewshot=count if type(count := config.get("num_fewshot")) is int else None,
        asks_its_examples=_asks_its_examples(config),
        is_local=config.get("dataset_path") in _LOCAL_READERS and not any("://" in file for file in files),
        problems=(
            *wrong,
            *(
                f"{path}: dataset_kwargs.data_files: {file}: no such file (paths are relative to the folder "
                "in which the job is started)"
                for file in missing
            ),
        ),
    )


def _asks_its_examples(config: Mapping[str, Any]) -> bool:
    """Return what `TaskFile.asks_its_examples` says.

    With no other source, the harness (0.4.13) draws examples from `test_split`. It leaves out the question
    that is asked only if `fewshot_split` names the same split (`api/task.py`, `fewshot_context`).
    """
    own = config.get("fewshot_config")
    own = own if isinstance(own, Mapping) else {}
    splits = ("training_split", "validation_split", "fewshot_split")
    sources = [*(config.get(name) for name in splits), own.get("split"), own.get("samples")]
    return config.get("test_split") is not None and all(one is None for one in sources)


def _wrong_keys(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of a task that the harness does not know; groups and classes have keys of their own."""
    if not isinstance(config.get("task"), str) or "group" in config or "class" in config:
        return
    known = harness_catalog()
    for key in config:
        if key not in known.task_keys:
            yield f"unknown key `{key}`; {nearest(str(key), known.task_keys)}".rstrip("; ")
    if (tags := config.get("tag")) and not _texts(tags):
        yield f"`tag` takes a name or a list of names, not {short(tags)}"
    kind = config.get("output_type")
    if kind is not None and kind not in known.output_types:
        yield f"`output_type` cannot be {short(kind)}; {nearest(str(kind), known.output_types)}"


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return a file's keys, with those of the files that it includes; its own keys win."""
    real = Path(os.path.realpath(path))  # `resolve` fails at a loop of links
    if real in above:
        raise ValueError(f"{path}: the file includes itself")
    config = yaml.load(read_regular_text(path), Loader=_Loader)
    if not isinstance(config, dict):
        raise ValueError(f"{path}: the keys of a task are expected here")
    included = config.pop("include", None)
    if included and not _texts(included):
        raise ValueError(f"{path}: `include` takes a file or a list of files, not {short(included)}")
    merged: dict[str, Any] = {}
    for name in _texts(included):
        merged |= _read(path.parent / name, (*above, real))
    return merged | config


def _texts(value: Any) -> list[str]:
    """Return a text, or a list of texts, as a list; an empty one for anything else."""
    texts = [value] if isinstance(value, str) else value
    is_list = isinstance(texts, list) and all(isinstance(one, str) for one in texts)
    return texts if is_list else []


def _data_files(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("dataset_path") not in _LOCAL_READERS:
        return
    kwargs = config.get("dataset_kwargs")
    given = kwargs.get("data_files") if isinstance(kwargs, Mapping) else None
    for item in given.values() if isinstance(given, Mapping) else [given]:
        for file in item if isinstance(item, list) else [item]:
            if isinstance(file, str):
                yield file


def _exists(cwd: Path, file: str) -> bool:
    return os.path.exists(cwd / file) or bool(glob.glob(file, root_dir=cwd, recursive=True))
