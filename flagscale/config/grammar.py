"""Overrides that Hydra's grammar cannot read, in plain words, with the quotes that make them readable."""

from __future__ import annotations

import re
import shlex
from itertools import accumulate

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

from flagscale.config.secrets import is_secret
from flagscale.errors import Problem

_KEY = re.compile(r"[~+]{0,2}[\w$-]+([./@:][\w$-]+)*")
_AFTER_DIGITS = re.compile(r"\.(\d+[A-Za-z_][\w-]*)")


def override_problem(override: str) -> Problem | None:
    """Return why an override `key=value` of the command line cannot be read; None if it can."""
    parser = OverridesParser.create()
    try:
        parser.parse_rule(override, "override")
        return None
    except HydraException as error:
        place = _place(error.__cause__, override)
    shown = override.removeprefix("++")
    key, equals, value = shown.partition("=")
    if not equals:
        return Problem("an override needs the form `key=value`", f"command line: {shown}")
    if place < override.index("=") or not _KEY.fullmatch(key) or not _is_readable(f"{key}=1", parser):
        hint = "write the names from the top, joined by dots"
        if found := _AFTER_DIGITS.search(key):
            hint = f"a name cannot begin with a digit: `{found[1]}`"
        return Problem(f"`{key}` is not a valid key", f"command line: {key}", hint)
    if is_secret(key.rpartition(".")[2]):
        return Problem(
            "the value cannot be read", f"command line: {key}", "quote it for Hydra and for the shell"
        )
    rest = override[place:].strip()
    at = f" at `{rest}`" if rest and rest != value.strip() else ""
    return Problem(
        f"`{value}` cannot be read as a value{at}", f"command line: {key}", _advice(key, value, parser)
    )


def choice_problem(override: str) -> Problem | None:
    """Return why an override `group=file` names no file; None if it does, or if it cannot be read at all."""
    try:
        read = OverridesParser.create().parse_rule(override, "override")
    except HydraException:
        return None
    if not read.key_or_group:
        return Problem("an override needs the form `key=value`", f"command line: {override}")
    value = read.value()
    names = value if isinstance(value, list) else [value]
    # `${hydra:...}` is known only after the files have been chosen.
    is_name = all(
        isinstance(name, str) and len(name) <= LONGEST_NAME and "${hydra:" not in name for name in names
    )
    if read.is_sweep_override() or read.is_delete() or isinstance(value, dict) or is_name:
        return None
    given, group = override.partition("=")[2][:LONGEST_NAME], read.key_or_group
    return Problem(f"`{given}` is not the name of a file of the group `{group}`", f"command line: {group}")


LONGEST_NAME = 200
"""Longer names cannot be those of files, and Hydra fails where it looks for them."""
_DEEPEST, _MOST_DIGITS = 50, 4300
"""Hydra's parser needs about ten calls per bracket; Python converts no longer numbers."""


def too_much(override: str) -> str:
    """Return why Python cannot parse an override; "" if it can."""
    deepest = sum(override.count(bracket) for bracket in "[{(")
    if deepest > _DEEPEST and max(accumulate((one in "[{(") - (one in ")}]") for one in override)) > _DEEPEST:
        return f"more than {_DEEPEST} levels of nesting"
    longest = max(map(len, re.findall(r"[0-9_]+", override)), default=0)
    return f"a number of more than {_MOST_DIGITS} digits" if longest > _MOST_DIGITS else ""


def _is_readable(override: str, parser: OverridesParser) -> bool:
    try:
        parser.parse_rule(override, "override")
    except HydraException:
        return False
    return True


def _place(cause: BaseException | None, override: str) -> int:
    """Return the position at which Hydra's lexer or parser gave up; the end if it does not tell."""
    token = getattr(cause, "offendingToken", None)
    start = getattr(cause, "startIndex", None) if token is None else token.start
    return start if isinstance(start, int) else len(override)


def _advice(key: str, value: str, parser: OverridesParser) -> str:
    """Return how to write the value as a text, for a shell."""
    # Within quotes, a backslash is special only before a quote and at the end.
    inside = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ("\\" if found[2] else "") + found[2], value)
    quoted = f'{key}="{inside}"'
    try:
        read = parser.parse_rule(quoted, "override").value()
    except HydraException:
        read = None
    if read != value and not (isinstance(read, QuotedString) and read.text == value):
        return "quote the value"
    return f"if it is meant as text, quote it for Hydra and for the shell: {shlex.quote(quoted)}"
