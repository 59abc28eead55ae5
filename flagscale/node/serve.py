"""A session: node commands as JSON lines on stdin, each answered by a line on stdout, until stdin ends.

One process serves all commands of a launcher to this host, so that only the first one waits for Python.
"""

from __future__ import annotations

import json
import os
import sys

from flagscale import __version__
from flagscale.node import commands

HELLO = "flagscale"
"""The key that tells the first line from whatever the shell of the user prints before it."""


def serve() -> int:
    """Answer until the launcher goes."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="surrogateescape")
    # What anything here prints must not be taken for an answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    answers.write(json.dumps({HELLO: __version__}) + "\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(commands.execute(json.loads(line))) + "\n")
        answers.flush()
    return 0
