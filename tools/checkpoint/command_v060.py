"""The command line of FlagScale v0.6.0's converter, and today's command with the same result."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from flagscale.errors import Problem, UserError

_OLD = (
    "--model-type",
    "--loader",
    "--saver",
    "--load-dir",
    "--save-dir",
    "--megatron-path",
    "--max-queue-size",
)
"""Options of v0.6.0 by which its command line is recognised; today's command has none of them."""


def refuse_old_command(words: Sequence[str]) -> None:
    """Raise `UserError`, which names the command to type instead, if the words are v0.6.0's options."""
    if any(word.partition("=")[0] in _OLD for word in words):
        what = "these are the options of FlagScale v0.6.0's converter"
        given = _parser().parse_known_args(words)[0]
        notes = "".join(f"\n    {note}" for note in _notes(given))
        raise UserError([Problem(what, hint=f"type: {todays_command(given)}{notes}")])


def todays_command(given: Namespace) -> str:
    """Return the command that makes the same model; what the tool detects itself is left out."""
    words = ["python", "tools/checkpoint/convert.py"]
    words += ["--load", given.load_dir or "DIR", "--save", given.save_dir or "DIR"]
    words += ["--to", "huggingface" if given.saver == "transformers" else "megatron"]
    if given.loader == "mcore" and given.saver == "transformers" and given.model_type:
        words += ["--model", given.model_type[0]]  # several families are alike in Megatron's format
    # A folder in Hugging Face's format states its own.
    if given.true_vocab_size and given.loader == "mcore":
        words += ["--vocab-size", given.true_vocab_size]
    if given.target_params_dtype:
        words += ["--dtype", given.target_params_dtype]
    if given.target_num_experts and len(given.model_type) > 1:
        words += ["--experts", given.target_num_experts]
    return shlex.join(words)


def _notes(given: Namespace) -> list[str]:
    notes = []
    if any((given.target_tensor_parallel_size, given.target_pipeline_parallel_size, given.megatron_path)):
        notes.append("no parallel sizes are needed: the result can be loaded in any layout")
    if given.loader == given.saver == "mcore":
        notes.append("only checkpoints in Megatron's older `torch` format need this conversion")
    return notes


def _parser() -> ArgumentParser:
    parser = ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    parser.add_argument("--model-type", nargs="*", default=[])
    for name in ("loader", "saver"):
        parser.add_argument(f"--{name}", default="mcore")
    for name in (
        *("load-dir", "save-dir", "true-vocab-size", "megatron-path", "target-params-dtype"),
        *("target-num-experts", "target-tensor-parallel-size", "target-pipeline-parallel-size"),
    ):
        parser.add_argument(f"--{name}", nargs="?")
    return parser
