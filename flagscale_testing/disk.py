"""File systems that fill up at once, for tests with a full disk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of `size` (`64k`) at a new folder; skip the test if that is not allowed."""
    folder.mkdir()
    mount = shutil.which("mount", path="/bin:/usr/bin:/sbin:/usr/sbin")
    if not mount:
        pytest.skip("requires a small file system, but `mount` is not installed")
    words = [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    tried = subprocess.run(words, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"requires a small file system, which this user may not mount: {tried.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
