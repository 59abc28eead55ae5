"""`verify.py --record`: a tokenizer becomes that of a pair if it gives the same ids for the text in it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flagscale.checks.facts import facts, facts_path
from flagscale.checks.tokenizer import fingerprint
from flagscale.errors import UserError
from flagscale_testing.pairs import write_pair
from megatron.flagscale.tokenizer import open_tokenizer
from tools.datasets.documents import open_source
from tools.datasets.preprocess import prepare
from tools.datasets.recording import record


@pytest.fixture
def prefix(tmp_path: Path, tokenizer: Path) -> Path:
    """A pair of 120 documents, without facts."""
    lines = (json.dumps({"text": f"def number_{number}(): return {number}\n"}) for number in range(120))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    prepare(open_source(tmp_path / "a.jsonl"), tokenizer, tmp_path / "out", valid_every=0)
    made = tmp_path / "out" / "train_text_document"
    facts_path(made).unlink()
    return made


def test_data_of_another_tool_gets_facts(prefix: Path, tokenizer: Path, tool: Callable[..., object]) -> None:
    assert record(prefix, tokenizer, 299) == 60
    known = facts(prefix)
    assert known is not None
    assert known["tokenizers"] == [fingerprint(tokenizer)]
    assert (known["documents"], known["largest_id"]) == (120, 299)
    assert known["sample"]["text"] == "def number_0(): return 0\n"


@pytest.mark.slow
def test_a_tokenizer_that_was_saved_again_is_confirmed(
    prefix: Path, tokenizer: Path, tmp_path: Path, tool: Callable[..., object]
) -> None:
    record(prefix, tokenizer, 299)
    again = Path(shutil.copytree(tokenizer, tmp_path / "again"))
    config = json.loads((again / "tokenizer_config.json").read_text())
    (again / "tokenizer_config.json").write_text(json.dumps(config | {"unused": 1}))
    refused = tool("datasets/verify.py", prefix, "--tokenizer", again)
    assert refused.returncode == 1
    assert "or confirm this one (verify.py --record)" in refused.stderr
    recorded = tool("datasets/verify.py", prefix, "--tokenizer", again, "--record")
    assert (recorded.returncode, recorded.stderr) == (0, "")
    assert f"{again} gives the same ids for 60 documents; recorded in {facts_path(prefix)}" in recorded.stdout
    assert tool("datasets/verify.py", prefix, "--tokenizer", again).returncode == 0
    assert tool("datasets/verify.py", prefix, "--record").returncode == 2


def test_a_tokenizer_with_other_ids_is_not_recorded(prefix: Path, tokenizer: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tokenizer, tmp_path / "other"))
    file = json.loads((other / "tokenizer.json").read_text())
    file["model"]["merges"] = file["model"]["merges"][:5]
    (other / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(UserError, match=r"gives other ids for document 0, from token \d+ on") as raised:
        record(prefix, other, 299)
    assert "the data: " in str(raised.value)
    assert "the tokenizer: " in str(raised.value)
    assert facts(prefix) is None


def test_a_pair_without_text_is_not_recorded(tokenizer: Path, tmp_path: Path) -> None:
    write_pair(tmp_path / "p", [1, 0], open_tokenizer(tokenizer).eos.to_bytes(2, "little"))
    with pytest.raises(UserError, match="no document has text that could be compared"):
        record(tmp_path / "p", tokenizer, 0)
