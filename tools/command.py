"""What all command lines of `tools/` share: how a user's mistake, a full disk and Ctrl-C end."""

import errno
import sys
from collections.abc import Callable
from importlib.util import find_spec

from flagscale.errors import UserError

_EXTRAS = {
    **dict.fromkeys(
        ("matplotlib", "megatron", "numpy", "safetensors", "tokenizers", "torch", "transformers"), "train"
    ),
    "openai": "serve",
}
"""Which extra of FlagScale's package brings what the tools import late."""
# What the machine refuses and only the user can mend. Any other OSError is a bug and keeps its traceback.
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG}


def run(main: Callable[[], int]) -> int:
    """The exit code of a command line: 2 for a user's mistake, 130 for Ctrl-C, else what `main` returns."""
    try:
        return main()
    except UserError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS or find_spec(missing):
            raise
        hint = f"pip install 'flagscale[{_EXTRAS[missing]}]'"
        print(f"error: the package `{missing}` is not installed\n    {hint}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        print(f"error: {error.strerror}: {error.filename or 'while writing'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command continues where this one stopped", file=sys.stderr)
        return 130
