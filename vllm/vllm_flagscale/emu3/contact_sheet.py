"""All pictures of a batch on one page (HTML), which a browser opens from the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any
from urllib.parse import quote

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fafafa }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(16em, 1fr)); gap: 1.5em }
figure { margin: 0 }
img { width: 100%; height: 16em; object-fit: contain; background: #eee }
figcaption { overflow-wrap: anywhere }
small { color: #666 }
"""


def page(title: str, records: Iterable[Mapping[str, Any]]) -> str:
    """Return a page with the pictures of results (`results.jsonl`), which it names by relative paths.

    A browser loads each picture when it is scrolled to, so a batch may have thousands.
    """
    figures = "\n".join(_figure(record, one) for record in records for one in record["pictures"])
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n<main>\n{figures}\n</main></body></html>\n"
    )


def _figure(record: Mapping[str, Any], picture: Mapping[str, Any]) -> str:
    file = quote(picture["file"])
    details = f"{record['index']} &middot; {record['size']} &middot; scale {record['guidance_scale']:g}"
    return (
        f'<figure><a href="{file}"><img src="{file}" loading="lazy" alt=""></a><figcaption>'
        f"{escape(record['prompt'])}<br><small>{details} &middot; seed {picture['seed']}</small>"
        "</figcaption></figure>"
    )
