"""How every tool in `tools/` reports a user error, a full disk and Ctrl-C."""

import errno
import sys
from collections.abc import Callable
from importlib.util import find_spec

from flagscale.errors import UserError
from flagscale.streams import quietly

_EXTRAS = {
    **dict.fromkeys(
        ("matplotlib", "megatron", "numpy", "pyarrow", "safetensors", "tokenizers", "torch", "transformers"),
        "train",
    ),
    "openai": "serve",
    **dict.fromkeys(("PIL", "av"), "vlm"),
}
"""The extra of FlagScale's package that installs each package that the tools import late."""
# Errors of the machine that only the user can fix. Any other OSError is a bug and keeps its traceback.
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG}


def run(main: Callable[[], int]) -> int:
    """Call `main`; return exit code 2 for a user error, 130 for Ctrl-C, otherwise what `main` returns.

    0 if it ends because nobody reads its output any more (`... | head`).
    """
    return quietly(lambda: _run(main))


def _run(main: Callable[[], int]) -> int:
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
        print(f"error: {error.strerror}: {error.filename or 'while writing a file'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        return 130
