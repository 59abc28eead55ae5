"""Make a small Emu3 with random weights, to try pictures without a download.

    python tools/emu3/tiny.py --output data/tiny_emu3

Its pictures are noise; keys, server, and files are used as for the real model.
"""

import sys
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flagscale.errors import UserError
from flagscale_testing.emu3 import make_emu3
from tools.command import run


def main() -> int:
    """Make the folder, completely or not at all.

    Raises:
        UserError: it exists already.
    """
    parser = ArgumentParser(prog="tiny.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    arguments = parser.parse_args()
    if arguments.output.exists():
        raise UserError(f"{arguments.output}: exists; choose another --output, or delete it")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{arguments.output.name}.", dir=arguments.output.parent) as part:
        model = Path(part) / "model"
        make_emu3(model, seed=arguments.seed)
        model.rename(arguments.output)
    print(f"made {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
