"""The kernel's list of descendants, on which the end of a supervisor's search relies."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from flagscale import linux

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the children of a process")


def printed(program: str) -> list[str]:
    """Return the lines that a program prints, run in a process of its own that adopts orphans."""
    head = "import os, signal, subprocess, threading\nfrom flagscale import linux\nlinux.adopt_orphans()\n"
    ended = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(program)],
        cwd=Path(linux.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ended.stdout.split()


def test_an_orphan_in_a_session_of_its_own_is_a_descendant_until_it_is_reaped() -> None:
    lines = printed("""
        print(linux.may_have_descendants(()))
        daemon = "(exec env -i setsid sleep 60) >/dev/null 2>&1 & echo $!"
        pid = int(subprocess.check_output(["sh", "-c", daemon]))
        print(linux.may_have_descendants(()), linux.may_have_descendants({pid}))
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        linux.reap_adopted({pid})
        print(linux.may_have_descendants(()))
        linux.reap_adopted(())
        print(linux.may_have_descendants(()))
    """)
    assert lines == ["False", "True", "False", "True", "False"]


def test_a_child_of_another_thread_is_a_descendant() -> None:
    lines = printed("""
        started, may_end = threading.Event(), threading.Event()
        def start():
            sleeping = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            started.set()
            may_end.wait()
            sleeping.kill()
            sleeping.wait()
        thread = threading.Thread(target=start)
        thread.start()
        started.wait()
        print(linux.may_have_descendants(()))
        may_end.set()
        thread.join()
        print(linux.may_have_descendants(()))
    """)
    assert lines == ["True", "False"]


def test_a_kernel_that_lists_no_children_leaves_it_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux, "_TASKS", tmp_path)
    assert linux.may_have_descendants(())
