"""The files that FlagScale v0.6.0 published pass a dryrun after what the messages of one dryrun ask for.

`UPDATE_GOLDEN=1 pytest tests/unit/test_published_v060.py` rewrites the messages; read the difference.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from flagscale.cli import main
from flagscale_testing.energon_folders import write_folder
from tests.unit.published_v060 import COMBINATIONS, Combination

GOLDEN = Path(__file__).parents[1] / "golden" / "from_v060"


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_data: Callable[..., str]) -> None:
    """Write data, a tokenizer and hostfiles into the current directory of a machine without chips."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    write_data(tmp_path / "data")
    (tmp_path / "tokenizer").mkdir()
    vocabulary: dict[str, Any] = {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
        "added_tokens": [],
    }
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(vocabulary))
    (tmp_path / "tokenizer" / "llama2.model").write_bytes(b"")
    (tmp_path / "tokenizer" / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (tmp_path / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer" / "special_tokens.txt").write_text("</s>\n")
    write_folder(tmp_path / "pictures", {"train": 128, "val": 32})
    (tmp_path / "chat").mkdir()
    vocabulary["model"]["vocab"]["<image>"] = 2
    (tmp_path / "chat" / "tokenizer.json").write_text(json.dumps(vocabulary))
    (tmp_path / "chat" / "chat_template.jinja").touch()
    (tmp_path / "demo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("release")
    (tmp_path / "hosts").write_text("".join(f"node{rank} slots=8 type=nvidia\n" for rank in range(4)))
    for chip in ("A800", "A100"):
        (tmp_path / f"hosts_{chip}").write_text(f"node0 slots=8 type={chip}\n")


def dryrun(
    one: Combination, fixes: Mapping[str, Any], capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[str]]:
    """Write the files, with keys changed, and return the exit code and the messages of a dryrun."""
    tree = deepcopy({"experiment": one.experiment, one.group: one.task})
    for path, value in fixes.items():
        *sections, name = path.split(".")
        node = tree
        for section in sections:
            node = node[section]
        if value is None:
            del node[name]
        else:
            node[name] = value
    experiment = {
        "defaults": [{one.group: one.task_file}, "_self_"],
        "experiment": tree["experiment"],
        "action": one.action,
        "hydra": {"run": {"dir": "${experiment.exp_dir}/hydra"}},
    }
    file = Path("conf", one.group, f"{one.task_file.removesuffix('.yaml')}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(tree[one.group], sort_keys=False))
    Path("conf/config.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    code = main(["--config-path", "conf", "--config-name", "config", "action=dryrun"])
    printed = capsys.readouterr().err.replace(str(Path.cwd()), "DIR")
    first, _, rest = printed.partition("\n- ")
    messages = (
        rest.rstrip("\n").split("\n- ")
        if code
        else printed.removeprefix("note: ").rstrip("\n").split("\nnote: ")
    )
    assert code == 0 or first == f"{len(messages)} mistake{'s' * (len(messages) > 1)} in the configuration:"
    return code, [text for text in messages if " devices, the plan uses " not in text]


def test_there_are_18() -> None:
    assert len({(one.name, one.task_file) for one in COMBINATIONS}) == 18


@pytest.mark.parametrize("one", COMBINATIONS, ids=lambda one: f"{one.name}+{one.task_file}")
def test_one_round_of_fixes_is_enough(
    one: Combination, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, asked = dryrun(one, {}, capsys)
    for name, value in one.environment.items():
        monkeypatch.setenv(name, value)
    code, remaining = dryrun(one, one.fixes, capsys)
    text = "\n- ".join(["First", *asked]) + "\n\n" + "\n- ".join(["Then", *remaining]) + "\n"
    golden = GOLDEN / f"{one.name}+{one.task_file.removesuffix('.yaml')}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert code == 0, remaining
    assert text == golden.read_text(encoding="utf-8")
