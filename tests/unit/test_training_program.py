"""The launcher's reading of a training program's file, and the child that describes its arguments."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flagscale.checks.worker import PARTS
from flagscale.config.catalog import Catalog
from flagscale.config.entrypoint import find_entrypoint
from flagscale.engines.megatron import own_arguments
from flagscale.engines.megatron.adapter import TRAIN
from flagscale.engines.megatron.program import TrainingProgram, read_program
from flagscale.errors import UserError
from flagscale.values import Job

Read = Callable[..., TrainingProgram]
RUN = "from megatron.flagscale.program import run\n"
ARGUMENTS = "def add_arguments(parser):\n    parser.add_argument('--mine', type=int)\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def read(catalog: Catalog) -> Read:
    """Read a program of this text, or an entrypoint that exists."""

    def read(text: str | None, entrypoint: str = "mine.py") -> TrainingProgram:
        if text is not None:
            Path(entrypoint).write_text(text)
        return read_program(entrypoint, catalog, "here")

    return read


def refusal(read: Read, text: str) -> str:
    with pytest.raises(UserError) as raised:
        read(text)
    (problem,) = raised.value.problems
    return str(problem)


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a child process was started")

    monkeypatch.setattr(own_arguments.subprocess, "Popen", refuse)


@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize(
    "text",
    [
        "1 / 0\n",
        "class Mine:\n    def add_arguments(self, parser): pass\n",
        "if __name__ == '__main__':\n    from x import add_arguments\n",
    ],
)
def test_a_program_without_arguments_is_not_run(read: Read, text: str) -> None:
    assert read(text) == TrainingProgram("mine.py")


@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize(
    ("text", "own_parts"),
    [
        (RUN + "run()", set()),
        (RUN + "run(add_arguments=None, datasets=None, forward_step=None)", set()),
        (RUN + "run(datasets=Rows)", {"datasets"}),
        (RUN + "if __name__ == '__main__':\n    sys.exit(run(forward_step=step))", {"forward_step"}),
        (
            "def main():\n    " + RUN + "    run(datasets=a)\n    run(forward_step=b)",
            {"datasets", "forward_step"},
        ),
        (RUN + "run(model_config=mine)", {"model_config"}),
        ("from megatron.flagscale.program import run as go\ngo(datasets=Rows)", {"datasets"}),
        ("from megatron.flagscale.program import train\ntrain([], datasets=Rows)", {"datasets"}),
        ("from megatron.flagscale import program\nprogram.run(datasets=Rows)", {"datasets"}),
        ("import megatron.flagscale.program as p\np.run(datasets=Rows)", {"datasets"}),
        ("import megatron.flagscale.program\nmegatron.flagscale.program.run()", set()),
        ("from subprocess import run\nrun(datasets=Rows)", set(PARTS)),
        ("import megatron.flagscale.program_of_mine\nrun()", set(PARTS)),
        ("import torch\ntorch.run()", set(PARTS)),
    ],
)
def test_the_parts_of_a_program_are_those_it_passes_to_run(
    read: Read, text: str, own_parts: set[str]
) -> None:
    assert read(text) == TrainingProgram("mine.py", frozenset(own_parts))


@pytest.mark.usefixtures("no_child")
def test_our_own_program_starts_no_process_and_has_no_parts(read: Read, build: Callable[..., Job]) -> None:
    assert read(None, TRAIN) == TrainingProgram(TRAIN, own_parts=frozenset())
    assert build().role.entrypoint == TRAIN


def test_a_program_that_is_not_found_declares_nothing(read: Read) -> None:
    assert read(None, "absent.py") == TrainingProgram("absent.py", has_mistake=True)
    assert read(None, "no_such_package.train").arguments == {}


def test_a_module_is_found_without_importing_its_package(read: Read, tmp_path: Path) -> None:
    package = tmp_path / "a_package_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "train.py").write_text("from . import more\n" + ARGUMENTS)
    (package / "more.py").write_text("")
    assert find_entrypoint("a_package_of_mine.train").source == package / "train.py"
    assert "a_package_of_mine" not in sys.modules
    assert set(read(None, "a_package_of_mine.train").arguments) == {"mine"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(:\n", "mine.py:1: not valid Python"),
        (
            "from megatron.flagscale.program import run\nrun(\n**parts)",
            "mine.py:3: the program's parts cannot be read from this call",
        ),
        (
            "try:\n    import vllm\nfinally: pass\n" + ARGUMENTS,
            "mine.py:2: imports `vllm` at the top",
        ),
        ("from megatron.core import mpu\n" + ARGUMENTS, "mine.py:1: imports `megatron` at the top"),
        ("import megatron.flagscale.data\n" + ARGUMENTS, "mine.py:1: leads to an import of `torch`"),
        (ARGUMENTS.replace("mine", "lr"), "mine.py:2: `--lr` clashes with `--lr` of megatron-core"),
        (
            ARGUMENTS.replace("int", "int, dest='lr'"),
            "mine.py:2: `--mine` clashes with `--lr`",
        ),
        (
            ARGUMENTS.replace("--mine", "mine"),
            "mine.py:1: the argument `mine` needs a name",
        ),
        (
            "\nasync " + ARGUMENTS,
            "mine.py:2: `add_arguments` is an `async` function after the import; define it at the top",
        ),
        (
            "if not __name__:\n  def add_arguments(parser): pass\n",
            "mine.py:2: `add_arguments` is no function after the import; define it at the top with `def`",
        ),
        ("add_arguments = None\n", "mine.py:1: `add_arguments` is no function"),
        (ARGUMENTS + "    parser.add_subparsers()\n", "mine.py:1: `add_subparsers` is not supported"),
        (
            ARGUMENTS + "    parser.add_argument_group().set_defaults(mine=1, num_layers=9)\n",
            "mine.py:1: `set_defaults` names `num_layers`, which is not one of the program's own arguments",
        ),
        (ARGUMENTS.replace("mine", "enable-hetero"), "mine.py:2: `--enable-hetero` clashes with the key"),
        (
            ARGUMENTS.replace("mine", "hub-token").replace("int", "str"),
            "mine.py:2: `--hub-token` is the name of a secret",
        ),
        (ARGUMENTS + "import sys\nsys.exit(3)\n", "mine.py:4: ends the process when it is imported"),
        (
            ARGUMENTS + "import os\nos._exit(3)\n",
            "here: `mine.py` ended with exit code 3 when it was imported",
        ),
        (
            ARGUMENTS
            + "import os, sys\nprint('Timeout (', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 9)",
            "here: `mine.py` was killed by SIGKILL when it was imported to read its arguments: Timeout (",
        ),
        (ARGUMENTS + "{}['a']\n", "mine.py:3: KeyError: 'a'"),
    ],
)
def test_a_program_that_cannot_be_read_is_refused_with_its_line(read: Read, text: str, expected: str) -> None:
    assert refusal(read, text).startswith(expected)


def test_imports_for_types_and_inside_functions_are_fine(read: Read) -> None:
    text = "import typing\nif typing.TYPE_CHECKING:\n    import torch\ndef step():\n    import torch\n"
    assert set(read(text + ARGUMENTS).arguments) == {"mine"}


def test_the_program_may_set_the_defaults_of_its_own_arguments(read: Read) -> None:
    program = read(ARGUMENTS + "    parser.set_defaults(mine=3)\n")
    assert program.arguments["mine"].default == 3


def test_output_of_the_program_is_harmless(read: Read) -> None:
    text = "import sys; print('Timeout (', file=sys.stderr)\n"
    assert set(read(text + ARGUMENTS).arguments) == {"mine"}
    assert set(read("print('{}')\nimport os; os.system('echo []')\n" + ARGUMENTS).arguments) == {"mine"}


@pytest.mark.parametrize("text", ["import time\ntime.sleep(60)\n", "while True: pass\n"])
def test_a_program_that_hangs_is_refused_within_the_limit(
    read: Read, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(own_arguments, "TIME_LIMIT", 1.0)
    begun = time.monotonic()
    reported = refusal(read, "\n" + text + ARGUMENTS)
    assert reported.startswith(f"mine.py:{3 if 'sleep' in text else 2}: `mine.py` is still running 1 s after")
    assert time.monotonic() - begun < 10


def test_a_broken_cache_is_rewritten(read: Read, cache: Path) -> None:
    arguments = read(ARGUMENTS).arguments
    (entry,) = cache.rglob("*.json")
    whole = entry.read_text()
    for broken in ("", "[]", "{}", whole.replace('"kind"', '"knd"'), whole.replace("mine.py", "gone.py")):
        entry.write_text(broken)
        assert read(None).arguments == arguments
        assert entry.read_text() == whole


def test_a_cache_that_cannot_be_written_is_not_needed(read: Read, cache: Path) -> None:
    cache.write_text("a file in its place")
    assert set(read(ARGUMENTS).arguments) == {"mine"}


def test_a_missing_required_argument_is_reported(refused: Callable[..., list[str]]) -> None:
    Path("mine.py").write_text(ARGUMENTS.replace("int", "int, required=True"))
    (message,) = refused(entrypoint="mine.py")
    assert message == "train.mine: `mine` is required by `mine.py`"


def test_the_data_that_a_program_is_given_is_checked(
    refused: Callable[..., list[str]], build: Callable[..., Job]
) -> None:
    Path("mine.py").write_text("")
    given = {"mock_data": None, "data_path": ["/nowhere/x"]}
    messages = refused(given, entrypoint="mine.py")
    assert messages
    assert all(message.startswith("train.data_path: /nowhere/x") for message in messages)
    assert build({"mock_data": None}, entrypoint="mine.py").role.entrypoint == "mine.py"


def test_a_program_without_a_part_follows_the_rules_for_ours(refused: Callable[..., list[str]]) -> None:
    Path("mine.py").write_text(RUN + "run(datasets=Rows)")
    (message,) = refused({"mock_data": None, "fim_data": True}, entrypoint="mine.py")
    assert message.startswith("train.fim_data: `fim_data` is not supported by FlagScale's forward")
    Path("mine.py").write_text(RUN + "run(forward_step=step)")
    (message,) = refused({"mock_data": None, "fim_data": True}, entrypoint="mine.py")
    assert message.startswith("train.data_path: no data: give `data_path`")


def test_an_unknown_key_names_the_program(refused: Callable[..., list[str]]) -> None:
    Path("mine.py").write_text("")
    (message,) = refused({"zzz_zzz": 1}, entrypoint="mine.py")
    assert message.endswith("nor `mine.py` has an argument `zzz_zzz`")
