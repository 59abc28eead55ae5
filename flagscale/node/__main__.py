"""`python -m flagscale.node VERB ...`: the entry point for the scripts and for remote transports.

`supervise` and `services` run until the job ends, `serve` until its launcher disconnects; the other verbs
print one JSON object. `supervise - RANK RUN_ID` is a session like `serve` until it is to start that run.
`task EXP_DIR RANK RUN_ID` supervises the run as a task of a batch system, which has started it with the run's
tags; `answer FOLDER RANK` performs the verb that is written there for this host.
"""

from __future__ import annotations

import gc
import json
import sys

from flagscale.errors import FlagScaleError
from flagscale.node import commands


def main(words: list[str]) -> int:
    """Perform a verb. Each imports only what it needs: importing all of them would double a start's time."""
    verb, *arguments = words
    if verb == "serve":
        return commands.serve()
    if verb == "answer":
        return commands.answer(*arguments)
    if verb in ("supervise", "services", "task"):
        try:
            if arguments[0] == "-":
                return commands.serve(supervises=arguments[1:])
            if verb == "task":
                return commands.task(*arguments)
            plan, node = commands.load(*arguments)
            if verb == "services":
                from flagscale.node import services

                return services.run(plan, node)
            from flagscale.node.start import supervise

            return supervise(plan, node)
        except (FlagScaleError, OSError) as error:
            print(f"flagscale: {error}", file=sys.stderr)
            return 1
    reply = commands.execute(words)
    print(json.dumps(reply))
    return 0 if reply.get("ok", True) else 1


if __name__ == "__main__":
    code = main(sys.argv[1:])
    gc.freeze()  # the interpreter would search everything for garbage before it ends: 9 ms
    sys.exit(code)
