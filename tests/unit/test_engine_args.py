"""Task keys to the engine's argv: some values are refused, all others arrive as written."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagscale.config.catalog import Catalog, Option, catalog_from
from flagscale.config.engine_args import EngineArguments, FlatKey, render
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem
from tests.unit.conftest import HOSTILE


@pytest.fixture
def engine(catalog: Catalog) -> argparse.ArgumentParser:
    """A parser that declares the catalog's arguments as the engine does."""
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    types: dict[str, Any] = {"int": int, "float": float, "bool": bool}
    for name, option in catalog.options.items():
        if option.kind == "bool_pair":
            parser.add_argument(f"--{name}", dest=option.dest, action=argparse.BooleanOptionalAction)
        elif option.kind in ("flag_true", "flag_false"):
            if any(
                other.kind == "bool_pair" and other.negative == name for other in catalog.options.values()
            ):
                continue  # declared with the pair
            parser.add_argument(
                f"--{name}", dest=option.dest, action=f"store_{option.kind.removeprefix('flag_')}"
            )
        else:
            kind = types.get(option.type, str)
            choices = [kind(choice) for choice in option.choices] or None
            parser.add_argument(f"--{name}", dest=option.dest, nargs=option.nargs, type=kind, choices=choices)
    return parser


def rendered(catalog: Catalog, tree: dict[str, Any]) -> EngineArguments:
    problems: list[Problem] = []
    flat_keys = [FlatKey(name, value, f"train.{name}") for name, value in tree.items()]
    arguments = render(flat_keys, catalog, SourceMap(), problems)
    assert problems == []
    return arguments


def argv(catalog: Catalog, tree: dict[str, Any]) -> list[str]:
    return list(rendered(catalog, tree).argv)


def refusals(catalog: Catalog, tree: dict[str, Any]) -> list[Problem]:
    problems: list[Problem] = []
    render(
        [FlatKey(name, value, f"train.{name}") for name, value in tree.items()],
        catalog,
        SourceMap(),
        problems,
    )
    return problems


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"num_layers": 4}, ["--num-layers", "4"]),
        ({"num_layers": "4"}, ["--num-layers", "4"]),
        ({"lr": 1e-5}, ["--lr", "1e-05"]),
        ({"lr": 1}, ["--lr", "1.0"]),
        ({"lr": -0.5}, ["--lr=-0.5"]),
        ({"seed": -1}, ["--seed=-1"]),
        ({"lr": float("inf")}, ["--lr", "inf"]),
        ({"num_layers": None}, []),
        ({"bf16": True}, ["--bf16"]),
        ({"bf16": False}, []),
        ({"disable_bias_linear": True}, ["--disable-bias-linear"]),
        ({"disable_bias_linear": False}, []),
        ({"add_bias_linear": False}, ["--disable-bias-linear"]),
        ({"add_bias_linear": True}, []),
        ({"masked_softmax_fusion": False}, ["--no-masked-softmax-fusion"]),
        ({"rl_persist_cuda_graphs": False}, ["--no-rl-persist-cuda-graphs"]),
        ({"rl_persist_cuda_graphs": True}, ["--rl-persist-cuda-graphs"]),
        ({"no_rl_persist_cuda_graphs": True}, ["--no-rl-persist-cuda-graphs"]),
        ({"yarn_correction_range_round_to_int": False}, ["--no-yarn-correction-range-round-to-int"]),
        ({"data_path": ["0.3", "a b", 0.7, "c"]}, ["--data-path", "0.3", "a b", "0.7", "c"]),
        ({"data_path": "one"}, ["--data-path", "one"]),
        ({"data_path": []}, ["--data-path"]),
        ({"iterations_to_skip": [1, -2]}, ["--iterations-to-skip", "1", "-2"]),
        ({"moe_layer_freq": [1, 0, 1]}, ["--moe-layer-freq", "[1,0,1]"]),
        ({"moe_layer_freq": "([1]*3+[0])*2"}, ["--moe-layer-freq", "([1]*3+[0])*2"]),
        ({"window_size": [128, 0]}, ["--window-size", "128,0"]),
        ({"data_path": [[1, 2], {"a": "é"}]}, ["--data-path", "[1,2]", '{"a":"é"}']),
        ({"split": 100}, ["--split", "100"]),
        ({"split": "969,30,1"}, ["--split", "969,30,1"]),
        ({"attention_backend": "flash"}, ["--attention-backend", "flash"]),
        ({"onnx_safe": True}, ["--onnx-safe", "true"]),
        ({"onnx_safe": False}, ["--onnx-safe", ""]),
    ],
)
def test_values_to_words(catalog: Catalog, tree: dict[str, Any], words: list[str]) -> None:
    assert argv(catalog, tree) == words


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"num_layers": "four"}, "`num_layers` takes a whole number, not 'four'"),
        ({"num_layers": 4.0}, "`num_layers` takes a whole number, not 4.0"),
        ({"num_layers": True}, "`num_layers` takes a whole number, not true"),
        ({"num_layers": [4]}, "`num_layers` takes a whole number, not [4]"),
        ({"num_layers": ""}, "`num_layers` takes a whole number, not ''"),
        ({"lr": "fast"}, "`lr` takes a number, not 'fast'"),
        ({"lr": 10**400}, "`lr` takes a number, not 1"),
        ({"lr": {"a": 1}}, "`lr` takes a number, not {"),
        ({"bf16": "true"}, "`bf16` is a switch: use true or false, not 'true'"),
        ({"bf16": 1}, "`bf16` is a switch: use true or false, not 1"),
        ({"add_bias_linear": 0}, "`add_bias_linear` is a switch"),
        ({"split": True}, '`split` takes text, not true (to give it as text, quote it: "true")'),
        ({"onnx_safe": "yes"}, '`onnx_safe` takes true or false, not "yes"'),
        ({"optimizer": "adamw"}, "`optimizer` cannot be 'adamw'; did you mean `adam`?"),
        ({"ckpt_format": "zarr"}, "`ckpt_format` cannot be 'zarr'; valid: "),
        ({"exit_signal": "SIGTREM"}, "did you mean `SIGTERM`?"),
        ({"rampup_batch_size": [1, 2]}, "`rampup_batch_size` takes 3 values, not 2"),
        ({"rampup_batch_size": 5}, "`rampup_batch_size` takes 3 values, not 1"),
        ({"iterations_to_skip": []}, "`iterations_to_skip` takes at least one value"),
        ({"iterations_to_skip": [1, "x"]}, "`iterations_to_skip` takes a whole number, not 'x'"),
        ({"data_path": ["a", None]}, "`data_path`: a value in the list is empty"),
        ({"data_path": ["-prefix"]}, "`data_path`: a value in a list cannot begin with a dash"),
        ({"moe_aux_loss_coeff": [-1e-5]}, "cannot begin with a dash"),
    ],
)
def test_values_that_the_engine_would_refuse_or_misread(
    catalog: Catalog, tree: dict[str, Any], says: str
) -> None:
    (problem,) = refusals(catalog, tree)
    assert says in problem.what
    assert problem.where == f"train.{next(iter(tree))}"


def test_unknown_names_are_reported_with_the_nearest_argument(catalog: Catalog) -> None:
    (problem,) = refusals(catalog, {"num_layer": 4})
    assert problem.what == f"megatron-core {catalog.version} has no argument `num_layer`"
    assert problem.hint == "did you mean `num_layers`?"
    (problem,) = refusals(catalog, {"add_bias_linaer": False})
    assert problem.hint == "did you mean `add_bias_linear`?"
    (problem,) = refusals(catalog, {"zzz": None})
    assert problem.hint == "if it is an empty section, remove it"


def test_two_names_of_one_argument(catalog: Catalog) -> None:
    (problem,) = refusals(catalog, {"disable_bias_linear": True, "add_bias_linear": True})
    assert problem.what == "`add_bias_linear` sets the same argument as `disable_bias_linear`"
    (problem,) = refusals(catalog, {"persistent_save_interval": 5, "save_interval": 6})
    assert "sets the same argument" in problem.what
    assert refusals(catalog, {"persistent_save_interval": 5, "save_interval": None}) == []


def test_all_mistakes_at_once(catalog: Catalog) -> None:
    assert len(refusals(catalog, {"num_layer": 1, "lr": "x", "optimizer": "y", "bf16": 2, "seed": 1})) == 4


def test_values_hold_the_defaults_and_the_given_ones(catalog: Catalog) -> None:
    arguments = rendered(catalog, {"num_layers": "4", "add_bias_linear": False, "data_path": ["a"]})
    assert arguments.values["num_layers"] == 4
    assert arguments.values["add_bias_linear"] is False
    assert arguments.values["data_path"] == ["a"]
    assert arguments.values["seed"] == 1234
    assert arguments.paths == {
        "num_layers": "train.num_layers",
        "add_bias_linear": "train.add_bias_linear",
        "data_path": "train.data_path",
    }


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_texts_arrive_verbatim(catalog: Catalog, engine: argparse.ArgumentParser, value: str) -> None:
    words = argv(catalog, {"wandb_exp_name": value, "num_layers": 3})
    parsed = engine.parse_args(words)
    assert parsed.wandb_exp_name == value
    assert parsed.num_layers == 3


@given(
    value=st.text(),
    items=st.lists(st.text().filter(lambda text: not text.startswith("-"))),
    number=st.integers(),
    real=st.floats(),
)
def test_any_value_arrives_verbatim(value: str, items: list[str], number: int, real: float) -> None:
    catalog = catalog_from(
        "engine",
        "1",
        {
            name: Option(name, name, "value", kind, nargs, (), None, None, nargs is not None)
            for name, kind, nargs in [
                ("text", "str", None),
                ("items", "str", "*"),
                ("number", "int", None),
                ("real", "float", None),
            ]
        },
    )
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--text")
    parser.add_argument("--items", nargs="*")
    parser.add_argument("--number", type=int)
    parser.add_argument("--real", type=float)
    parsed = parser.parse_args(argv(catalog, {"items": items, "text": value, "number": number, "real": real}))
    assert (parsed.text, parsed.items, parsed.number) == (value, items, number)
    assert repr(parsed.real) == repr(real)


def sample(option: Option) -> Any:
    """Return a value that fits an option, as YAML would give it."""
    if option.kind != "value":
        return True
    one: Any = {"int": 7, "float": -0.5, "bool": True}.get(option.type, "some text")
    if option.choices:
        one = int(option.choices[-1]) if option.type == "int" else option.choices[-1]
    return [one] * (option.nargs if isinstance(option.nargs, int) else 2) if option.takes_many else one


def test_every_argument_of_the_engine_can_be_given(catalog: Catalog, engine: argparse.ArgumentParser) -> None:
    assert len(catalog.options) > 800
    for name, option in catalog.options.items():
        value = sample(option)
        arguments = rendered(catalog, {name.replace("-", "_"): value})
        expected = option.kind != "flag_false" if option.kind != "value" else value
        assert arguments.values[option.dest] == expected, name
        assert getattr(engine.parse_args(list(arguments.argv)), option.dest) == expected, name


def test_every_switch_can_be_named_by_what_it_turns_off(catalog: Catalog) -> None:
    switches = {
        name: option
        for name, option in catalog.by_name.items()
        if option.kind == "flag_false" and name == option.dest != option.name.replace("-", "_")
    }
    assert "add_bias_linear" in switches
    for dest, option in switches.items():
        assert argv(catalog, {dest: False}) == [f"--{option.name}"]
        assert argv(catalog, {dest: True}) == []
