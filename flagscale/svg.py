"""Pictures as SVG: files that need nothing else, in the colours of their reader's scheme, light or dark."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --faint: #d0d7de; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --faint: #3d444d; } }
.paper { fill: var(--paper); } .faint { stroke: var(--faint); }
text { fill: var(--ink); font: 12px system-ui, sans-serif; } .title { font-size: 15px; font-weight: 600; }
.limit { stroke: var(--ink); stroke-width: 2; stroke-dasharray: 5 3; }
.range { stroke: var(--ink); stroke-width: 1.5; } .end { text-anchor: end; } .mid { text-anchor: middle; }
"""


def document(width: float, height: float, title: str, parts: Iterable[str], style: str = "") -> str:
    """Return the text of a file; `style`: rules for classes of its own."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}{style.lstrip()}</style>",
            f'<rect class="paper" width="{width}" height="{height}"/>',
            *parts,
            "</svg>\n",
        ]
    )


def box(x: float, y: float, wide: float, high: float, look: str, title: str = "") -> str:
    """Return a rectangle; `look`: its attributes, `title`: shown when the pointer is on it."""
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{wide:.2f}" height="{high:.2f}" {look}>{_title(title)}</rect>'
    )


def dot(x: float, y: float, kind: str, title: str = "") -> str:
    return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="4" class="{kind}">{_title(title)}</circle>'


def line(x: float, y: float, to_x: float, to_y: float, kind: str) -> str:
    return f'<line x1="{x:.2f}" y1="{y:.2f}" x2="{to_x:.2f}" y2="{to_y:.2f}" class="{kind}"/>'


def text(x: float, y: float, words: str, kind: str = "", title: str = "") -> str:
    look = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.2f}" y="{y:.2f}"{look}>{escape(words)}{_title(title)}</text>'


def _title(words: str) -> str:
    return f"<title>{escape(words)}</title>" if words else ""
