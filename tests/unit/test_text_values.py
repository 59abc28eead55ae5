"""Values of text keys arrive as they were written, whatever YAML or Hydra reads in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flagscale.cli import main

WRITTEN = [
    *("0022", "010", "0x10", "0b11", "0o17", "+5", "-0", "1_000", "12345678901234567890", "007"),
    *("1.10", "1.", ".5", "1e5", "1E+05", "1_0.5", ".inf", "-.INF", ".nan", "1:30", "1:30.5", "190:20:30"),
    *("yes", "No", "on", "off", "true", "True", "FALSE", "64(x2)", "2024-01-02", "2024-01-02 10:00:00"),
]
"""Texts that stand in a YAML file without quotes."""
ON_THE_COMMAND_LINE = [
    *("0022", "010", "0x10", "1.10", "1e5", "1_000", "+5", "-0", ".5", "1.", "inf", "NaN", "True", "yes"),
    *("12345678901234567890", "1:30", "2024-01-02"),
]
"""Texts that Hydra's grammar accepts as a value without quotes."""


def dryrun(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, str], str]:
    """Return the environment that the scripts of a dryrun show, and everything it printed."""
    code = main([*words, "action=dryrun"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    pairs = re.findall(r"^#   (\w+)=(.*)$", printed.out, re.MULTILINE)
    return {name: value.strip("'") for name, value in pairs}, printed.out


def write(text: str, **more: str) -> None:
    """Write the experiment with lines for `envs`, and other files by name."""
    path = Path("conf/config.yaml")
    path.write_text(path.read_text().replace("  envs: {PLAIN: 1, SERVICE_TOKEN: do-not-tell}\n", text))
    for name, content in more.items():
        Path("conf", name).parent.mkdir(exist_ok=True)
        Path("conf", name).write_text(content)


def envs(texts: list[str]) -> str:
    return "  envs:\n" + "".join(f"    V{index}: {text}\n" for index, text in enumerate(texts))


def test_in_a_file(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write(envs(WRITTEN))
    found, printed = dryrun(capsys, *words)
    assert [found[f"V{index}"] for index in range(len(WRITTEN))] == WRITTEN
    # The recorded configuration is the same experiment.
    recorded = re.search(r"^# .*/config\.yaml\n(.*?)\n\n# ", printed, re.MULTILINE | re.DOTALL)
    assert recorded
    Path("conf/config.yaml").write_text(recorded[1])
    assert dryrun(capsys, *words)[1] == printed


@pytest.mark.parametrize("plus", ["", "++"])
def test_on_the_command_line(plus: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    texts = ON_THE_COMMAND_LINE
    single = [f"{plus}experiment.envs.V{index}={text}" for index, text in enumerate(texts)]
    found, _ = dryrun(capsys, *words, *single)
    assert [found[f"V{index}"] for index in range(len(texts))] == texts
    inside = ",".join(f"W{index}:{text}" for index, text in enumerate(texts) if ":" not in text)
    found, _ = dryrun(capsys, *words, f"{plus}experiment.envs={{{inside}}}")
    for index, text in enumerate(texts):
        assert found.get(f"W{index}", text) == text


def test_quotes_keep_their_content(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write("  envs: {A: '0022', B: \"yes\", C: ' 1.10 ', D: ''}\n")
    more = ["experiment.envs.E='0022'", 'experiment.envs.F="a b"', "experiment.envs.G='1.10'"]
    found, _ = dryrun(capsys, *words, *more)
    given = {"A": "0022", "B": "yes", "C": " 1.10 ", "D": "", "E": "0022", "F": "a b", "G": "1.10"}
    assert {name: found[name] for name in given} == given


def test_through_interpolation(
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OUTSIDE", "0022")
    write(
        "  envs: {VER: 1.10, A: '${experiment.envs.VER}', B: 'v${.VER}', C: '${oc.env:OUTSIDE}', "
        "LR: '${train.model.lr}', N: '${experiment.runner.nproc_per_node}', FLAG: no, D: '${.FLAG}'}\n"
    )
    found, _ = dryrun(capsys, *words)
    expected = {"A": "1.10", "B": "v1.10", "C": "0022", "LR": "1.0e-3", "N": "2", "D": "no"}
    assert {name: found[name] for name in expected} == expected
    found, _ = dryrun(capsys, *words, "experiment.envs.VER=2.50")
    assert (found["A"], found["B"]) == ("2.50", "v2.50")


def test_the_file_that_wins_gives_the_text(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write(
        "  envs: {ONE: 1.10, TWO: 0022}\n",
        **{
            "base.yaml": "experiment: {envs: {ONE: 1.1, TWO: 18, THREE: 010}}\n",
            "site/here.yaml": "# @package experiment.envs\nFOUR: 1.00\nFIVE: yes\n",
        },
    )
    path = Path("conf/config.yaml")
    path.write_text("defaults: [base, site: here, _self_]\n" + path.read_text())
    expected = {"ONE": "1.10", "TWO": "0022", "THREE": "010", "FOUR": "1.00", "FIVE": "yes"}
    found, _ = dryrun(capsys, *words)
    assert {name: found[name] for name in expected} == expected
    path.write_text(path.read_text().replace("[base, site: here, _self_]", "[_self_, base, site: here]"))
    found, _ = dryrun(capsys, *words)
    expected |= {"ONE": "1.1", "TWO": "18"}
    assert {name: found[name] for name in expected} == expected


def test_for_one_host_or_type_and_by_a_merge_key(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        "  envs:\n    <<: {A: 010, B: 1.10}\n    B: 1.20\n"
        "    node_specific: {localhost: {C: 0022}}\n    device_type_specific: {cpu: {D: off}}\n"
    )
    found, _ = dryrun(capsys, *words)
    assert {name: found[name] for name in "ABCD"} == {"A": "010", "B": "1.20", "C": "0022", "D": "off"}


@pytest.mark.parametrize("name", ["1.10", "0012", "1e5", "yes", "1_0"])
def test_the_name_of_a_run(name: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("conf/config.yaml")
    text = path.read_text().replace("exp_name: tiny", f"exp_name: {name}")
    path.write_text(re.sub("exp_dir: .*", "exp_dir: ./${experiment.exp_name}", text))
    _, printed = dryrun(capsys, *words)
    assert printed.startswith(f"{name}: 2 ranks")
    assert f"{Path.cwd()}/{name}/config.yaml" in printed
    assert main([*words, "action=query"]) == 3
    assert capsys.readouterr().err == f"nothing was started in {Path.cwd()}/{name}\n"


def test_text_arguments_of_an_engine(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("conf/config.yaml")
    path.write_text(
        path.read_text() + "  wandb_exp_name: 0012\n  wandb_project: 1.10\n  tokenizer_model: 007\n"
    )
    _, printed = dryrun(capsys, *words, "train.wandb_entity=1e5", "train.model.train_iters=1_0")
    for expected in (
        "--wandb-exp-name 0012\n",
        "--wandb-project 1.10\n",
        "--tokenizer-model 007\n",
        "--wandb-entity 1e5\n",
        "--train-iters 10\n",
        "--lr 0.001\n",
    ):
        assert expected in printed
    recorded = re.search(r"^# .*/config\.yaml\n(.*?)\n\n# ", printed, re.MULTILINE | re.DOTALL)
    assert recorded
    path.write_text(recorded[1])
    assert dryrun(capsys, *words)[1] == printed


def test_a_text_that_looks_like_an_interpolation_is_recorded(
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("  envs: {A: 'x\\${HOME}', B: '\\\\\\${X}', C: 'a\\b'}\n")
    found, printed = dryrun(capsys, *words)
    assert found["A"] == "x${HOME}"
    recorded = re.search(r"^# .*/config\.yaml\n(.*?)\n\n# ", printed, re.MULTILINE | re.DOTALL)
    assert recorded
    Path("conf/config.yaml").write_text(recorded[1])
    assert dryrun(capsys, *words)[1] == printed


@pytest.mark.parametrize("value", ["", "~", "null"])
def test_no_value_is_a_mistake(value: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write(f"  envs:\n    A: {value}\n")
    assert main(words) == 2
    assert (
        'conf/config.yaml:8: experiment.envs.A: no value: write "" for an empty text'
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(("name", "read"), [("NO", "False"), ("on", "True"), ("010", "8")])
def test_a_name_that_yaml_does_not_read_as_text(
    name: str, read: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(f"  envs:\n    {name}: x\n")
    assert main(words) == 2
    (_, problem, hint) = capsys.readouterr().err.splitlines()
    assert problem == f"- conf/config.yaml:7: experiment.envs.{read}: YAML reads this name as {read}"
    assert hint == "    if it is meant as text, quote it"
