"""The arguments with which a training computes the model in a Hugging Face folder. Standard library only.

`python -m megatron.flagscale.convert.hf_arguments FOLDER` prints them as JSON, for the launcher.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flagscale.checks.pretrained import CONFIG
from flagscale.errors import UserError
from megatron.flagscale.convert.files import read_json
from megatron.flagscale.convert.hf_pictures import read_config
from megatron.flagscale.convert.megatron_args import checkpoint_arguments


def arguments_in(folder: Path) -> dict[str, Any]:
    """Return the arguments that a checkpoint of this model holds, by their names in the engine's `args`.

    Raises:
        UserError: the model cannot be converted; lists all reasons.
    """
    return checkpoint_arguments(read_config(read_json(folder / CONFIG), str(folder / CONFIG)))


def main() -> None:
    """Print `{"arguments": ...}`, or `{"problems": [[what, where, hint], ...]}`."""
    try:
        answer: dict[str, Any] = {"arguments": arguments_in(Path(sys.argv[1]))}
    except UserError as error:
        answer = {"problems": [[one.what, one.where, one.hint] for one in error.problems]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
