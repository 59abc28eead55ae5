"""File systems that fill up at once, for tests of what a full disk does."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of `size` (`64k`) at a new folder; skips the test where that is not allowed."""
    folder.mkdir()
    mount = shutil.which("mount", path="/bin:/usr/bin:/sbin:/usr/sbin")
    if not mount:
        pytest.skip("a small file system is needed, and `mount` is not installed")
    words = [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    tried = subprocess.run(words, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"a small file system is needed, and this user may not mount one: {tried.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
