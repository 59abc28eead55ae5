"""What all command lines of `tools/` share: how a user's mistake, a full disk and Ctrl-C end."""

import errno
import sys
from collections.abc import Callable

from flagscale.errors import UserError

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
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        print(f"error: {error.strerror}: {error.filename or 'while writing'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command continues where this one stopped", file=sys.stderr)
        return 130
