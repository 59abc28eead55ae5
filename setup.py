"""The rest of the build is in pyproject.toml: here, a wheel gets the folders that a clone has at its root."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHARED = ("examples", "tools", "requirements")
CLONE_ONLY = ("tools/demo.py", "tools/demo_guidance.py", "tools/demo_serve.py", "tools/demo_vlm.py")
"""The programs behind `make demo`, `make demo-guidance`, `make demo-serve` and `make demo-vlm`."""


class BuildWithShared(build_py):
    """Also copies `SHARED` into `flagscale/share`, where `flagscale.bundled` finds them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        share = Path(self.build_lib, "flagscale", "share")
        shutil.rmtree(share, ignore_errors=True)
        for name in SHARED:
            shutil.copytree(name, share / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in CLONE_ONLY:
            (share / name).unlink()


setup(cmdclass={"build_py": BuildWithShared})
