"""`python -m flagscale.node VERB ...`: the entry of the scripts and of remote transports.

`supervise` and `guard` run until the end of the job; the other verbs print one JSON object.
"""

from __future__ import annotations

import json
import sys

from flagscale.errors import FlagScaleError
from flagscale.node import commands
from flagscale.node.guard import guard
from flagscale.node.supervisor import Supervisor


def main(words: list[str]) -> int:
    verb, *arguments = words
    if verb in ("supervise", "guard"):
        try:
            plan, node = commands.load(*arguments)
            return Supervisor(plan, node).run() if verb == "supervise" else guard(plan, node)
        except (FlagScaleError, OSError) as error:
            print(f"flagscale: {error}", file=sys.stderr)
            return 1
    reply = commands.execute(words)
    print(json.dumps(reply))
    return 0 if reply.get("ok", True) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
