"""The command line of FlagScale v0.6.0's converter is answered with the command to type, which works."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flagscale.errors import UserError
from tools.checkpoint.command_v060 import refuse_old_command
from tools.checkpoint.convert import main

SIZES = "--target-tensor-parallel-size 2 --target-pipeline-parallel-size 2 --max-queue-size 50"


def answer(words: str) -> list[str]:
    """Return the lines of the message that refuses a command line."""
    with pytest.raises(UserError) as raised:
        refuse_old_command(shlex.split(words))
    return str(raised.value).splitlines()[1:]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "--model-type llama --loader mcore --saver transformers --load-dir A --save-dir 'b c' "
            "--true-vocab-size 128256 --target-params-dtype bf16",
            "--load A --save 'b c' --to huggingface --model llama --vocab-size 128256 --dtype bf16",
        ),
        (
            "--model-type=mixtral --loader=transformers --load-dir=A --save-dir=B --true-vocab-size 9",
            "--load A --save B --to megatron",
        ),
        (
            "--model-type mistral mixtral --loader transformers --load-dir A --save-dir B "
            "--target-num-experts 8",
            "--load A --save B --to megatron --experts 8",
        ),
        (
            "--model-type mistral --loader mcore --saver transformers --load-dir A --save-dir B",
            "--load A --save B --to huggingface --model mistral",
        ),
        (
            "--model-type deepseek_v3 --loader mcore --saver transformers --load-dir A --save-dir B",
            "--load A --save B --to huggingface --model deepseek_v3",
        ),
        ("--loader mcore --saver mcore --load-dir", "--load DIR --save DIR --to megatron"),
    ],
)
def test_the_new_command(old: str, new: str) -> None:
    assert answer(old)[0] == f"    type: python tools/checkpoint/convert.py {new}"


def test_what_it_no_longer_needs() -> None:
    _, *notes = answer(f"--loader mcore --saver mcore --load-dir A --save-dir B {SIZES}")
    assert notes == [
        "    no parallel sizes are needed: the result can be loaded in any layout",
        "    only checkpoints in Megatron's older `torch` format need this conversion",
    ]


def test_todays_options_are_left_alone() -> None:
    refuse_old_command(shlex.split("--load --loaded --save B --model llama"))


def test_the_answer_converts(
    models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = models("Llama 2")
    old = f"--model-type llama --loader mcore --saver transformers --load-dir {source / 'megatron'}"
    command = shlex.split(answer(f"{old} --save-dir {tmp_path / 'hf'} {SIZES}")[0].partition("type: ")[2])
    monkeypatch.setattr(sys, "argv", command[1:])
    assert main() == 0
    assert (tmp_path / "hf" / "config.json").is_file()
