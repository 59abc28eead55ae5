"""Where a key was written: file and line through Hydra's merge, or the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flagscale.cli import main
from flagscale.config.source_map import SourceMap, index_sources


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


Write = Callable[[str, str], Path]


def test_keys_of_a_file_and_their_nearest_parent(write: Write) -> None:
    path = write("c.yaml", "a:\n  b: 1\n  'quoted key': 2\n\n  c:\n  - x\n  - d: 3\n")
    found = index_sources([(path, "")])
    assert found.where("a.b") == "c.yaml:2: a.b"
    assert found.where("a.quoted key") == "c.yaml:3: a.quoted key"
    assert found.where("a.c.1.d") == "c.yaml:7: a.c.1.d"
    assert found.where("a.c.0") == "c.yaml:6: a.c.0"
    assert found.where("a.missing.deep") == "c.yaml:1: a.missing.deep"
    assert found.where("nowhere.x") == "nowhere.x"


def test_keys_of_a_group_file_are_below_its_package(write: Write) -> None:
    path = write("train/demo.yaml", "model:\n  n: 1\n")
    assert index_sources([(path, "train")]).where("train.model.n") == "train/demo.yaml:2: train.model.n"


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("_global_", "n"),
        ("_group_", "train.n"),
        ("_global_.other", "other.n"),
        ("_group_.deep", "train.deep.n"),
        ("some.place", "some.place.n"),
    ],
)
def test_hydras_package_header(write: Write, header: str, key: str) -> None:
    path = write("train/demo.yaml", f"\n# @package {header}\nn: 1\n")
    assert index_sources([(path, "train")]).where(key) == f"train/demo.yaml:3: {key}"


def test_files_of_the_same_folder_in_the_defaults_list(write: Write) -> None:
    write("base.yaml", "a: 1\nb: 1\n")
    path = write("c.yaml", "defaults:\n- base\n- _self_\na: 2\n")
    found = index_sources([(path, "")])
    assert found.where("a") == "c.yaml:4: a"
    assert found.where("b") == "base.yaml:2: b"


def test_files_that_name_each_other_are_read_once(write: Write) -> None:
    first = write("a.yaml", "defaults: [b]\nx: 1\n")
    write("b.yaml", "defaults: [a]\ny: 1\n")
    assert index_sources([(first, "")]).where("y") == "b.yaml:2: y"


@pytest.mark.parametrize(
    ("order", "winner"),
    [
        ("[_self_, train: demo]", "train/demo.yaml:1"),
        ("[train: demo, _self_]", "c.yaml:3"),
        ("[train: demo]", "train/demo.yaml:1"),
    ],
)
def test_the_file_that_wins_is_blamed(write: Write, order: str, winner: str) -> None:
    group = write("train/demo.yaml", "n: 1\n")
    path = write("c.yaml", f"defaults: {order}\ntrain:\n  n: 2\n")
    assert index_sources([(group, "train"), (path, "")]).where("train.n") == f"{winner}: train.n"


def test_the_command_line_is_blamed_for_what_it_sets(write: Write) -> None:
    path = write("c.yaml", "a:\n  b: 1\n  c: {d: 1}\n")
    found = index_sources([(path, "")], ["a.b=2", "+a.new=1", "~a.gone", "++a.c={d: 2}", "+top.x=1"])
    assert found.where("a.b") == "command line: a.b"
    assert found.where("a.new") == "command line: a.new"
    assert found.where("a.gone") == "command line: a.gone"
    assert found.where("a.c.d") == "command line: a.c.d"
    assert found.where("top") == "command line: top"
    assert found.where("a") == "c.yaml:1: a"


def test_overrides_as_hydra_keeps_them(write: Write) -> None:
    path = write("c.yaml", "a: 1\n")
    found = index_sources([(path, "")], OmegaConf.create(["a=${nowhere}", "+b=1"]))
    assert found.where("a") == "command line: a"
    assert found.where("b") == "command line: b"


def test_choosing_a_group_file_does_not_set_a_key(write: Write) -> None:
    path = write("train/other.yaml", "n: 1\n")
    assert index_sources([(path, "train")], ["train=other"]).where("train.n") == "train/other.yaml:1: train.n"


def test_unreadable_files_are_skipped(write: Write, tmp_path: Path) -> None:
    broken = write("broken.yaml", "a: [1\n")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe")
    found = index_sources(
        [(tmp_path / "missing.yaml", ""), (broken, ""), (binary, ""), (write("empty.yaml", ""), "")]
    )
    assert found == SourceMap()


def test_the_text_of_a_number_is_known_unless_the_value_comes_from_elsewhere(write: Write) -> None:
    base = write("base.yaml", "a: 1.10\nb: 010\nc: [0x10, '0x10']\nd: ${a}\ne: ${e}\n")
    found = index_sources(
        [(base, ""), (write("c.yaml", "b: 1_0\n"), "")], ["f=1.50", "g={h:007,i:[1_0]}", "k='a b'"]
    )
    assert found.text("a", 1.1) == "1.10"
    assert found.text("a", 1.2) is None
    assert found.text("b", 10) == "1_0"
    assert found.text("b", 8) is None
    assert found.text("c.0", 16) == "0x10"
    assert found.text("c.1", "0x10") is None
    assert found.text("d", 1.1) == "1.10"
    assert found.text("e", 1) is None
    assert found.text("f", 1.5) == "1.50"
    assert found.text("g.h", "007") is None  # a text already
    assert found.text("k", "a b") is None
    assert found.text("g.i.0", 10) == "1_0"
    assert found.text("absent", 1) is None


@pytest.mark.parametrize(
    "override", ["train=demo", "train=demo.yaml", "train=large/demo", "train=large/demo.yaml"]
)
def test_a_chosen_file_is_not_a_key_of_the_command_line(write: Write, override: str) -> None:
    path = write(f"conf/{override.replace('=', '/').removesuffix('.yaml')}.yaml", "n: 1\n")
    assert index_sources([(path, "train")], [override]).where("train.n").endswith("/demo.yaml:1: train.n")


@pytest.mark.parametrize("name", ["demo", "demo.yaml", "demo1.5.yaml", "large/demo.yaml"])
def test_a_file_that_the_defaults_list_names_with_its_suffix(
    name: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("conf/config.yaml", f"defaults: [{{train: {name}}}, _self_]\nexperiment: {{exp_name: x}}\n")
    write(f"conf/train/{name.removesuffix('.yaml')}.yaml", "no_such_key: 1\nmodel: {num_layer: 2}\n")
    words = ["--config-path", "conf", "--config-name", "config", "action=dryrun"]
    task = "experiment.task={backend: megatron}"
    assert main([*words, "experiment.exp_dir=out", task]) == 2
    assert f"conf/train/{name.removesuffix('.yaml')}.yaml:2: train.model.num_layer" in capsys.readouterr().err
