"""The start of a rank: what it imports, what it leaves out, and that nothing else changes."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from flagscale_testing.ranks.forked import Run, run_all
from flagscale_testing.ranks.training import MOCK_DATA, MODEL, environment, saving
from megatron.flagscale.patching import PatchError
from megatron.flagscale.startup import PATCHES, import_on_use, importing

pytestmark = pytest.mark.filterwarnings("ignore")


def test_no_garbage_is_collected_during_imports() -> None:
    with importing():
        assert not gc.isenabled()
        made = [object() for _ in range(10)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(made)


def test_garbage_is_collected_again_after_a_failed_import() -> None:
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


def write_package(folder: Path, name: str, init: str) -> str:
    package = folder / name / "libraries"
    package.mkdir(parents=True)
    (folder / name / "__init__.py").write_text(f"from {name}.libraries.light import Light\n")
    (package / "__init__.py").write_text(init.replace("PACKAGE", f"{name}.libraries"))
    (package / "light.py").write_text("class Light: ...\n")
    (package / "heavy.py").write_text("class Heavy: ...\n")
    return f"{name}.libraries"


def test_a_name_of_a_package_is_imported_when_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    init = "from PACKAGE.light import Light\nfrom PACKAGE.heavy import Heavy\n"
    package = write_package(tmp_path, "lazy_parent", init)
    import_on_use(package)
    libraries = sys.modules[package]
    assert sys.modules["lazy_parent"].libraries is libraries
    assert libraries.Light is sys.modules[f"{package}.light"].Light
    assert f"{package}.heavy" not in sys.modules
    assert libraries.Heavy.__module__ == f"{package}.heavy"
    with pytest.raises(AttributeError, match="has no attribute 'Other'"):
        _ = libraries.Other
    import_on_use(package)
    assert sys.modules[package] is libraries


@pytest.mark.parametrize("init", ["import os\n", "from .light import Light\n", "NAME = 1\n"])
def test_a_package_that_does_more_than_importing_names_is_refused(
    init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"refused_{abs(hash(init))}"
    with pytest.raises(PatchError, match="line 1 is not an import of names"):
        import_on_use(write_package(tmp_path, name, init))


def test_help_texts_are_parsed_once_per_class() -> None:
    asked: list[type] = []

    def original(self: Any, config: type) -> dict[str, str]:
        asked.append(config)
        return {"name": config.__name__}

    patch = next(patch for patch in PATCHES if patch.target.endswith("_get_field_docstrings"))
    texts = patch.make(original)
    texts(None, int)["changed"] = "by the caller"
    assert [texts(None, int), texts(None, str)] == [{"name": "int"}, {"name": "str"}]
    assert asked == [int, str]


_PROGRAM = """
import json, sys
from megatron.flagscale.bootstrap import prepare_engine
from megatron.flagscale.args import parse
sys.argv[1:] = prepare_engine(sys.argv[1:])
args = parse()
import megatron.core.tokenizers.text.libraries as libraries
found = {"workers": args.num_workers, "transformers": "transformers" in sys.modules}
print(json.dumps({**found, "later": libraries.HuggingFaceTokenizer.__name__}))
"""


@pytest.mark.slow
def test_a_rank_imports_transformers_only_for_a_tokenizer_that_needs_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PROGRAM, *MODEL, *MOCK_DATA, "--train-iters", "1"]
    done = subprocess.run(
        command, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"workers": 0, "transformers": False, "later": "HuggingFaceTokenizer"}


def test_sets_that_are_never_evaluated_have_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from megatron import training

    from megatron.flagscale.validation import PATCHES as validating

    def workers(eval_iters: int) -> list[int]:
        args = Namespace(asked_eval_iters=eval_iters, full_validation=False)
        monkeypatch.setattr(training, "get_args", lambda: args)
        train, valid, test = (
            torch.utils.data.DataLoader([1, 2], num_workers=2, persistent_workers=True) for _ in range(3)
        )
        build = validating[0].make(lambda provider: (train, [valid, None], test))
        built = build(None)
        assert built == (train, [valid, None], test)
        if not eval_iters:
            assert len([*valid, *test]) == 4
        return [loader.num_workers for loader in (train, valid, test)]

    assert workers(eval_iters=0) == [2, 0, 0]
    assert workers(eval_iters=1) == [2, 2, 2]


def refuse_to_draw() -> None:
    """Make a rank fail if it draws initial weights."""
    from megatron.flagscale import initialization

    def fail(*positional: Any) -> None:
        raise RuntimeError("initial weights are drawn")

    initialization.draw = fail


def test_a_rank_draws_no_weights_that_a_checkpoint_replaces(tmp_path: Path) -> None:
    short = ("--num-layers", "1", "--train-iters", "3")
    argv = (*MODEL, *MOCK_DATA, *saving(tmp_path / "checkpoints"), *short)
    longer = ("--train-iters", "4", "--override-opt_param-scheduler", "--no-save-optim")
    mutation = f"{__name__}:refuse_to_draw"
    more = (*argv, *longer, "--save", str(tmp_path / "elsewhere"))
    lenient = (*more, "--dist-ckpt-strictness", "log_all")
    runs = [
        Run("first", 1, argv),
        Run("resumed", 1, more),
        Run("without", 1, more, mutation=mutation),
        Run("lenient", 1, lenient, mutation=mutation),
        Run("new", 1, (*MODEL, *MOCK_DATA, *short), mutation=mutation),
    ]
    curves = run_all(runs, tmp_path)
    assert curves["first"].error == curves["without"].error == ""
    assert curves["resumed"] == curves["without"]
    assert len(curves["without"].losses) == 1
    for name in ("lenient", "new"):
        assert "initial weights are drawn" in curves[name].error
