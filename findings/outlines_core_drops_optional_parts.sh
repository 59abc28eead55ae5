#!/usr/bin/env bash
# outlines_core 0.2.14, Python 3.12; seen on 2026-11-30.
#
# Where a text may end, `Index` allows the end, and of all other tokens only those after which it may end again. A token
# that begins an optional part of several tokens is missing, so that part is never generated: `a(bc)?` gives `a` alone,
# of the choices `a` and `abc` the second one cannot be reached, and a number has no decimals, unless one token holds a
# whole part (the point and a digit). Where a text must go on, the same part is allowed. vLLM 0.32 makes a regular
# expression of the choices and of a JSON schema for its backend `outlines`.
#
# Output seen (tokens allowed after the text; $ is the end):
#   a(bc)?             a    $
#   (a|abc)            a    $
#   (abc|a)            a    $
#   a(bc)*             a    $
#   ab?                a    $ b
#   a(bc)?d            a    b d
#   [0-9]+(\.[0-9]+)?  1    $ 0 1
#   the last one, with a token ".5": $ .5 0 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet outlines_core==0.2.14
cat > "$folder/show.py" <<'PYTHON'
from outlines_core import Guide, Index, Vocabulary


def after(regex: str, text: str, *more: str) -> str:
    """Return the tokens that are allowed after a text; every character is a token."""
    ids = {token: number for number, token in enumerate([*"abcd01.", *more], 1)}
    guide = Guide(Index(regex, Vocabulary(0, {token: [number] for token, number in ids.items()})))
    for character in text:
        allowed = guide.advance(ids[character])
    names = {0: "$"} | {number: token for token, number in ids.items()}
    return " ".join(sorted(names[one] for one in allowed))


NUMBER = r"[0-9]+(\.[0-9]+)?"
seen = [after(regex, "a") for regex in ("a(bc)?", "(a|abc)", "(abc|a)", "a(bc)*", "ab?", "a(bc)?d")]
seen += [after(NUMBER, "1"), after(NUMBER, "1", ".5")]
print(*seen, sep="\n")
assert seen == ["$", "$", "$", "$", "$ b", "b d", "$ 0 1", "$ .5 0 1"], seen
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
