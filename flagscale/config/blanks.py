"""Blanks that the author of a file left for its user: they are recognised, and what belongs there is said.

The published files of FlagScale v0.6.0 have four forms: `${data_path:??}`, `${hostfile??}`, `xxxx`, `<xxx>`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from flagscale.errors import Problem

_UNFILLED = re.compile(r"<x+>|x{4,}", re.IGNORECASE)
_NAMED = re.compile(r"\$\{\s*[\w.]+\s*:?\?+[^{}]*\}")
_OLD_ENV = re.compile(r"\$\{\s*env:\s*([^{},\s]+)([^{}]*)\}")
_FREE_TEXT = ("experiment.exp_name", "experiment.envs.", "experiment.cmds.", "inference.generate.")
"""Keys whose text is the user's own, and may look like a blank."""

_WANTED: Mapping[str, str] = {
    "data_path": "put the path of the data here: the common prefix of its .bin and .idx files "
    "(of pictures: the Energon folder)",
    "hostfile": "put the path of the hostfile here, with the `type=` of each host if this machine lacks "
    "their chips; or remove the key to run on this host only",
    "tokenizer_path": "put the tokenizer's folder here",
    "tokenizer_model": "put the path of the tokenizer here",
    "tokenizer_type": "put the type of the tokenizer here, such as HuggingFaceTokenizer",
    "vocab_size": "put the number of the tokenizer's tokens here, or remove the key",
    "load": "put the folder of the checkpoints here",
    "pretrained_checkpoint": "put the folder of the checkpoints here",
}


def blank_text(path: str, text: str, where: str) -> Problem | None:
    """Return the problem of a plain text that only marks a blank; None if it is a value."""
    if not _UNFILLED.fullmatch(text.strip()) or path.startswith(_FREE_TEXT):
        return None
    return _blank(path, text, where)


def blank_interpolation(path: str, text: str, where: str) -> Problem | None:
    """Return the problem of a text with a blank, or with a form of `${...}` that is no longer read."""
    if found := _NAMED.search(text):
        return _blank(path, found[0], where)
    if found := _OLD_ENV.search(text):
        instead = f"${{oc.env:{found[1]}{found[2]}}}"
        unset = "" if found[1] in os.environ or found[2] else f", and set {found[1]} in your shell"
        return Problem(f"`{found[0]}` is no longer supported", where, f"write {instead}{unset}")
    return None


def wanted_at(path: str) -> str:
    """Return the hint that says which value belongs to a key."""
    names = [name.replace("-", "_") for name in path.split(".") if not name.isdigit()]
    name = names[-1] if names else path
    is_path = name.endswith(("_path", "_file", "_dir", "_save", "_model"))
    return _WANTED.get(name, "put the path here" if is_path else "put the value here")


def _blank(path: str, text: str, where: str) -> Problem:
    return Problem(f"`{text}` is a blank to fill in", where, wanted_at(path))
