"""The launcher's rules: the worker reports them in the same words, and the engine accepts what they allow."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.checks.worker import PARTS, Capabilities, cpu_defaults
from flagscale.config.catalog import load_catalog
from flagscale.config.engine_args import FlatKey, render
from flagscale.config.source_map import SourceMap
from flagscale.engines.megatron.adapter import CATALOG, TRAIN
from flagscale.engines.megatron.program import read_program
from flagscale.errors import Problem, UserError
from megatron.flagscale import bootstrap, no_te, program
from megatron.flagscale.args import engine_parser
from megatron.flagscale.checkpoint import async_save
from megatron.flagscale.checks import argument_problems
from megatron.flagscale.chips.cpu import CPU
from megatron.flagscale.hetero.arguments import own_part
from megatron.flagscale.recompute import schedule_recompute
from megatron.flagscale.vision.arguments import add_arguments
from tests.unit.conftest import TASK
from tests.unit.rules import SHARED, Example
from tests.unit.test_degrees import GOOD, SHORT
from tests.unit.test_pictures import PROGRAM, WRONG

pytestmark = pytest.mark.filterwarnings("ignore")

FOR_THE_ENGINE = {"save": "checkpoints", "eval_interval": 100, "apply_rope_fusion": False}
"""Values that the launcher and the worker add; without TransformerEngine, no fused rotary embedding."""

ON_CPU = (
    *async_save.arguments(),
    *no_te.DEFAULTS,
    f"--distributed-backend={CPU.backend}",
    *CPU.defaults,
)
"""Arguments that the worker places before a user's on a CPU."""

HOST = Capabilities(has_chip=False, has_fused_layers=False, backend=CPU.backend)
CHIP = Capabilities(has_chip=True, has_fused_layers=True, backend="nccl")


def argv_of(tree: dict[str, Any], program: str = TRAIN) -> tuple[str, ...]:
    """Return the arguments of the engine, and of a training program, for task keys."""
    problems: list[Problem] = []
    flat_keys = [FlatKey(name, value, name) for name, value in tree.items()]
    catalog = load_catalog(CATALOG)
    catalog = read_program(program, catalog, "").extend(catalog)
    argv = render(flat_keys, catalog, SourceMap(), problems).argv
    assert problems == []
    return argv


@pytest.fixture
def engine_accepts(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any], int], None]:
    """Return a function that validates task keys as the engine does; it asks for the GPU's architecture."""
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(major=9, minor=0))
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    monkeypatch.setenv("RANK", "0")

    def validate(tree: dict[str, Any], ranks: int) -> None:
        from megatron.training.argument_utils import gpt_config_from_args
        from megatron.training.arguments import parse_args, validate_args

        from megatron.flagscale.args import add_flagscale_args

        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        monkeypatch.setattr(sys, "argv", ["train", *argv_of(tree)])
        gpt_config_from_args(validate_args(parse_args(extra_args_provider=add_flagscale_args)))

    return validate


@pytest.mark.parametrize(("ranks", "short", "shown"), GOOD)
def test_the_engine_accepts_layouts_that_pass_the_checks(
    engine_accepts: Callable[[dict[str, Any], int], None], ranks: int, short: dict[str, Any], shown: str
) -> None:
    keys = {SHORT.get(name, name): value for name, value in short.items()}
    engine_accepts({**TASK, **FOR_THE_ENGINE, **keys}, ranks)


def by_option(problems: list[Problem]) -> list[tuple[str, str]]:
    """Return each problem's option and text, whether it names a key (`train.x_y`) or an option (`--x-y`)."""
    keys = [(problem.where.rpartition(".")[2].lstrip("-"), problem.what) for problem in problems]
    return [(key.replace("_", "-"), what) for key, what in keys]


@pytest.mark.parametrize("example", SHARED, ids=str)
def test_launcher_and_worker_report_a_violation_in_the_same_words(
    example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "megatron.flagscale.checks._PACKAGES", {}
    )  # the worker also says what is missing here
    machine, defaults = (HOST, ON_CPU) if example.platform == "cpu" else (CHIP, ())
    tree = {"save": FOR_THE_ENGINE["save"], **TASK, **example.changes}
    args = engine_parser().parse_args([*defaults, *argv_of(tree)])
    found = argument_problems(args, machine)
    assert found
    assert by_option(found) == by_option(example.report())


@pytest.mark.parametrize("changes", [one for one, *_ in WRONG[2:8]], ids=lambda one: str(one)[:60])
def test_launcher_and_worker_report_a_violation_with_pictures_in_the_same_words(
    changes: dict[str, Any],
) -> None:
    changes = {"mock_data": None, "transformer_impl": "torch", "split": "1", **changes}
    argv = argv_of({**TASK, **changes}, PROGRAM)
    args = engine_parser(add_arguments).parse_args([*ON_CPU, *argv])
    found = argument_problems(args, HOST, PARTS)
    assert found
    assert by_option(found) == by_option(Example(changes, "", "cpu", entrypoint=PROGRAM).report())


WITHOUT_PARTS = "from megatron.flagscale.program import run\nrun()\n"
OF_OUR_STEP, NO_DATA, NO_FILE = "fim-data", "data-path", "test-data-path"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WITHOUT_PARTS, {OF_OUR_STEP, NO_FILE}),
        (WITHOUT_PARTS.replace("()", "(add_arguments=print)"), {OF_OUR_STEP, NO_FILE}),
        (WITHOUT_PARTS.replace("()", "(datasets=print)"), {OF_OUR_STEP, NO_FILE}),
        (WITHOUT_PARTS.replace("()", "(model_config=print)"), {OF_OUR_STEP, NO_FILE}),
        (WITHOUT_PARTS.replace("()", "(forward_step=print)"), {NO_FILE}),
        (WITHOUT_PARTS.replace("()", "(forward_step=print, datasets=print)"), {NO_FILE}),
    ],
)
@pytest.mark.parametrize("has_path", [True, False])
def test_launcher_and_worker_judge_a_program_of_ones_own_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: set[str], has_path: bool
) -> None:
    class Prepared(Exception):
        """What the worker knows about the program when it checks its arguments."""

    def prepare_engine(_: object, add_arguments: object, own_parts: Collection[str]) -> None:
        raise Prepared(own_parts)

    monkeypatch.setattr(bootstrap, "prepare_engine", prepare_engine)
    monkeypatch.setattr(program, "run", lambda **parts: program.train([], **parts))
    mine = tmp_path / "mine.py"
    mine.write_text(text)
    with pytest.raises(Prepared) as raised:
        runpy.run_path(str(mine), run_name="__main__")
    (own_parts,) = raised.value.args

    data = {"test_data_path": ["/nowhere/x"]} if has_path else {}
    changes = {"fim_data": True, "mock_data": False, **data}
    args = engine_parser().parse_args([*ON_CPU, *argv_of({**TASK, **changes})])
    found = by_option(argument_problems(args, HOST, own_parts))
    assert found == by_option(Example(changes, "", "cpu", entrypoint=str(mine)).report())
    if not has_path:
        expected = expected - {NO_FILE} | (set() if "datasets" in text else {NO_DATA})
    assert {option for option, _ in found} == expected


def test_the_launcher_knows_the_workers_defaults_on_a_cpu() -> None:
    args, engines = engine_parser().parse_args(ON_CPU), engine_parser().parse_args([])
    known = cpu_defaults(HOST)
    assert {name: getattr(args, name) for name in known} == known
    assert all(getattr(engines, name) != value for name, value in known.items())


def test_only_the_worker_reports_missing_packages() -> None:
    machine = Capabilities(has_chip=True, has_fused_layers=False, backend="nccl")
    (problem,) = argument_problems(engine_parser().parse_args(argv_of(TASK)), machine)
    assert problem.where == "--transformer-impl"
    assert "needs TransformerEngine, which is not installed" in problem.what
    local = {"transformer_impl": "local", "moe_grouped_gemm": True}
    (problem,) = argument_problems(engine_parser().parse_args(argv_of({**TASK, **local})), machine)
    assert "without TransformerEngine" in problem.what


def test_launcher_and_worker_report_recompute_lists_in_the_same_words() -> None:
    name = "recompute_granularity_per_stage_micro_batch"
    refined = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1}
    changes = {**refined, name: [[1, 3, 0]]}
    parsed = vars(engine_parser().parse_args(argv_of({**TASK, **changes})))
    validated = {"virtual_pipeline_model_parallel_size": None, "data_parallel_size": 1}
    with pytest.raises(UserError) as raised:
        schedule_recompute(None, argparse.Namespace(**{**parsed, **validated}))
    assert by_option(list(raised.value.problems)) == by_option(Example(changes, "").report())


def test_launcher_and_worker_report_unequal_meshes_in_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = HeteroLayout((Mesh(layers=((3,),)), Mesh(layers=((1,),))))
    meshes = {"hetero_process_meshes": [1] * 10, "hetero_pipeline_layer_split": [3, 1]}
    changes = {"mtp_num_layers": 1, "position_embedding_type": "rope"}
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError) as raised:
        own_part(argv_of({**TASK, **changes, "hetero_layout": layout.to_json()}))
    (problem,) = raised.value.problems
    assert by_option([problem]) == by_option(Example({**changes, **meshes}, "", meshes=2).report())
