"""The demo's data: one command prepares it, and a second call reuses it without heavy imports."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flagscale.checks import indexed

ROOT = Path(__file__).resolve().parents[2]
HEAVY = "torch", "transformers", "tokenizers", "numpy", "pyarrow", "rich"


@pytest.mark.slow
def test_demo_data_is_prepared_from_a_folder_and_reused(
    tmp_path: Path, tool: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    texts, output = tmp_path / "my $(texts)", tmp_path / "demo data"
    texts.mkdir()
    for number in range(60):
        (texts / f"{number}.txt").write_text(f"text number {number} " * number)
    (texts / "latin.txt").write_bytes(b"\xe9t\xe9")

    first = tool("datasets/demo.py", "--source", texts, "--output", output)
    assert first.returncode == 0, first.stderr
    assert "59 documents (train 57 + valid 2)" in first.stdout.splitlines()[-1]  # one of the 60 is empty
    assert "skipped 1 file(s), not UTF-8 text" in first.stderr
    assert "Warning" not in first.stderr
    for split in ("train", "valid"):
        assert indexed.problems(output / f"{split}_text_document", thorough=True) == []

    command = [
        "-X",
        "importtime",
        str(ROOT / "tools/datasets/demo.py"),
        "--source",
        str(texts),
        "--output",
        str(output),
    ]
    second = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    assert "up to date" in second.stdout
    names = {line.rsplit("|", 1)[-1].strip() for line in second.stderr.splitlines()}
    imported = {name.split(".")[0] for name in names}
    assert "tools" in imported, "importtime lists the imports"
    assert not imported & set(HEAVY)
    assert "megatron.core" not in names

    (texts / "1.txt").write_text("changed")
    changed = tool("datasets/demo.py", "--source", texts, "--output", output)
    assert changed.returncode == 2
    assert "made with other settings: source" in changed.stderr


def test_each_tool_prints_help(tool: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    for name in ("demo", "preprocess", "train_tokenizer", "verify"):
        done = tool(f"datasets/{name}.py", "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert "usage:" in done.stdout
        module = [sys.executable, "-m", f"tools.datasets.{name}", "--help"]
        assert subprocess.run(module, cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_ctrl_c_prints_how_to_continue(tmp_path: Path) -> None:
    code = "from tools.command import run\ndef main(): raise KeyboardInterrupt\nraise SystemExit(run(main))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 130
    assert ended.stderr == "interrupted: run the same command again to continue\n"
