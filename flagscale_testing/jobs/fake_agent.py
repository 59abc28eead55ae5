"""An agent without an engine: `fake_agent.py REPORT BEHAVIOUR...`, one process per behaviour.

It writes its argv, its environment and the pids of its ranks to the file REPORT, forwards TERM to its
children, waits for them and ends; `exit:N` ends the agent itself at once.
"""

import contextlib
import json
import os
import signal
import sys
import time

SLEEPER = "import signal, sys, time; exec(sys.argv[1]); time.sleep(1000)"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def become(marker: str, program: str, environment: dict[str, str]) -> None:
    os.execve(sys.executable, [sys.executable, "-S", "-c", SLEEPER, program, marker], environment)


def rank(behaviour: str, marker: str, pid_pipe: int) -> None:
    """Turn a forked child into a rank; report the pid of the process that remains."""
    environment = dict(os.environ)
    program = DEAF if "deaf" in behaviour else "pass"
    if "daemon" in behaviour:
        if os.fork():
            os._exit(0)
        os.setsid()
        leader = os.getpid()
        if os.fork():
            os._exit(0)
        while os.getppid() == leader:  # until it is gone, it is one more process of the run
            time.sleep(0.001)
    if "bare" in behaviour:
        environment = {}
    os.write(pid_pipe, f"{os.getpid()}\n".encode())
    if "stopped" in behaviour:
        os.kill(os.getpid(), signal.SIGSTOP)
    become(marker, program, environment)


def main() -> None:
    report, *behaviours = sys.argv[1:]
    children: list[int] = []
    pids: dict[str, int] = {}

    ending = False

    def pass_on(number: int, frame: object) -> None:
        nonlocal ending
        ending = True
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, pass_on)
    for behaviour in behaviours:
        if behaviour.startswith("exit:"):
            print("the last words of the agent", file=sys.stderr)
            sys.exit(int(behaviour.removeprefix("exit:")))
        if not behaviour.startswith("rank"):
            continue
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            rank(behaviour, report, writing)
        children.append(child)
        os.close(writing)
        pids[behaviour] = int(os.read(reading, 32))
    content = {"argv": sys.argv, "environ": dict(os.environ), "cwd": os.getcwd(), "pids": pids}
    with open(report + ".writing", "w") as file:
        json.dump(content, file)
    os.replace(report + ".writing", report)
    for child in children:
        os.waitpid(child, 0)
    # A rank that has become a daemon keeps the job running.
    while not ending and (not children or any("daemon" in behaviour for behaviour in behaviours)):
        time.sleep(0.05)


main()
