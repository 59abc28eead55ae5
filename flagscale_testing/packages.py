"""Installed packages that register names, as files only: nothing is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_package(site: Path, name: str, entry_points: Mapping[str, Mapping[str, str]], source: str) -> None:
    """Write a distribution NAME 1.0 with one module NAME, and its entry points (name -> target) per kind."""
    site.joinpath(f"{name}.py").write_text(source, encoding="utf-8")
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for kind, table in entry_points.items()
        for line in (f"[flagscale.{kind}]", *(f"{one} = {target}" for one, target in table.items()))
    ]
    info.joinpath("entry_points.txt").write_text("\n".join(lines) + "\n")
