"""A page (HTML) of samples: pictures, tokens, and which of them a model learns. Pure: it opens no file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
section { border-top: 1px solid #ccc; padding: 1em 0 }
h2 { font-size: 1em; font-family: monospace; overflow-wrap: anywhere }
figure { display: inline-block; margin: 0 1em 0.5em 0; vertical-align: top; font-size: 0.8em; color: #666 }
img { display: block; max-height: 240px; max-width: 100%; min-height: 56px; border: 1px solid #ddd }
.tokens { font-family: monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 }
.tokens span { border-left: 1px solid #ddd }
.masked { color: #999 }
.learnt { background: #d9f2df }
.placeholder { color: #999; background: #eee; border-radius: 3px; padding: 0 0.3em }
.wrong { color: #b00 }
"""


@dataclass(frozen=True)
class Token:
    """One token, or a placeholder that is repeated `times`."""

    text: str
    is_learnt: bool = False
    times: int = 1
    is_placeholder: bool = False


@dataclass(frozen=True)
class Figure:
    """A picture as it is shown (JPEG), and the text below it."""

    jpeg: bytes
    caption: str


@dataclass(frozen=True)
class Shown:
    """A sample: its name, pictures and tokens, or why a training would skip it."""

    key: str
    figures: Sequence[Figure]
    tokens: Sequence[Token] = ()
    wrong: str = ""


def page(title: str, about: str, samples: Iterable[Shown]) -> str:
    """Return a page that needs no other file."""
    body = "\n".join(_section(one) for one in samples)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n<p>{escape(about)} Tokens that a "
        'model learns are <span class="learnt">green</span>, others <span class="masked">grey</span>.</p>\n'
        f"{body}\n</body></html>\n"
    )


def _section(shown: Shown) -> str:
    figures = "".join(
        f'<figure><img src="data:image/jpeg;base64,{base64.b64encode(one.jpeg).decode()}" alt="">'
        f"<figcaption>{escape(one.caption)}</figcaption></figure>"
        for one in shown.figures
    )
    if shown.wrong:
        below = f'<p class="wrong">skipped: {escape(shown.wrong)}</p>'
    else:
        total = sum(token.times for token in shown.tokens)
        learnt = sum(token.is_learnt for token in shown.tokens)
        below = f"<p>{total} tokens, {learnt} of them learnt</p>" + (
            f'<p class="tokens">{"".join(map(_token, shown.tokens))}</p>'
        )
    return f"<section><h2>{escape(shown.key)}</h2>{figures}{below}</section>"


def _token(token: Token) -> str:
    if token.is_placeholder:
        return f'<span class="placeholder">{escape(token.text)} &times; {token.times}</span>'
    # A line break is shown as a mark too, because it is a token of its own.
    text = escape(token.text).replace("\n", "&#8629;\n")
    return f'<span class="{"learnt" if token.is_learnt else "masked"}">{text}</span>'
