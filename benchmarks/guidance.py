"""Measure what guidance costs: guided requests against twice as many ordinary ones, which have as many rows.

Per model, one engine guides and one is vLLM's own. Both stay up and receive the same loads in turn; every
other round runs in the opposite order. The models have random weights, the prompts 32 tokens, the engines one
thread each. With 8 guided requests:

- cost: 8 guided requests against 16 ordinary ones, the same number of tokens each
- beside: 8 ordinary requests with half as many tokens, until the last one has ended, beside 8 guided requests
  against beside 16 ordinary ones
- without: 16 ordinary requests in the engine that guides against the other engine
- memory: the most KV cache blocks that 8 guided requests use at a time, against 8 ordinary ones

Prints, per model and temperature, the speed relative to the ordinary side. The steps of a load do the same
work in every round, so a load costs the sum of the fewest CPU seconds that each of its steps took in any
round: other work on the machine only adds to them. In brackets, the same from each half of the rounds.

    python -m benchmarks.guidance [--rounds 8] [--models tiny middle ...] [--guided 8]
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.guidance_engine import Cost, Load, Model, serve

MODELS = {
    "tiny": Model(layers=2, hidden=128, heads=4, vocabulary=640, tokens=128),
    "middle": Model(layers=8, hidden=512, heads=8, vocabulary=32_000, tokens=48),
    "large vocabulary": Model(layers=4, hidden=256, heads=4, vocabulary=151_936, tokens=32),
}
TEMPERATURES = {0.0: "0", 1.0: "1, top-k 50"}
GOALS = {"cost": {0.0: 0.95, 1.0: 0.90}, "beside": {0.0: 0.98, 1.0: 0.98}}
PLAIN, GUIDED = "plain", "guided"

Key = tuple[str, Load]
"""An engine and what it is given."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8, help="at least 2")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--guided", type=int, default=8, help="number of guided requests")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds {arguments.rounds}: each half of the rounds needs one")
    lines = []
    for name in arguments.models:
        with engines(MODELS[name]) as both:
            for temperature in TEMPERATURES:
                loads = sides(arguments.guided, temperature)
                found = measured(both, [*loads.values()], arguments.rounds)
                lines.append(row(name, temperature, loads, found))
                print(lines[-1], flush=True)
    print("\n| model | temperature | cost | beside | without | memory |\n|---|---|---|---|---|---|")
    print("\n".join(lines))
    goals = [f"{what} {of[0.0]:.2f} at temperature 0, {of[1.0]:.2f} at 1" for what, of in GOALS.items()]
    print(f"\n{arguments.rounds} rounds of {arguments.guided} guided requests; goals: {'; '.join(goals)}")


def sides(guided: int, temperature: float) -> dict[str, tuple[Key, Key]]:
    """Return the two loads of each comparison: the side with guidance, and the ordinary one."""
    rows = Load(ordinary=2 * guided, temperature=temperature)
    with_guidance = Load(guided=guided, temperature=temperature)
    return {
        "cost": ((GUIDED, with_guidance), (PLAIN, rows)),
        "beside": (
            (GUIDED, Load(guided=guided, short=guided, temperature=temperature)),
            (PLAIN, Load(ordinary=2 * guided, short=guided, temperature=temperature)),
        ),
        "without": ((GUIDED, rows), (PLAIN, rows)),
        "memory": ((GUIDED, with_guidance), (PLAIN, Load(ordinary=guided, temperature=temperature))),
    }


@contextmanager
def engines(model: Model) -> Iterator[Mapping[str, Connection]]:
    """Start both engines, each in a process of its own; yield the connections that take loads."""
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = {}
        for name in (PLAIN, GUIDED):
            found[name], end = spawn.Pipe()
            process = spawn.Process(target=serve, args=(end, folder, model, name == GUIDED))
            process.start()
            stack.callback(process.join)
            stack.callback(found[name].close)  # its end
            end.close()
            found[name].recv()  # ready; one after the other, because each start takes all cores
        yield found


def measured(
    both: Mapping[str, Connection], compared: Sequence[tuple[Key, Key]], rounds: int
) -> dict[Key, list[Cost]]:
    """Return the costs of each load per round, after one round that is not counted."""
    keys = list(dict.fromkeys(chain.from_iterable(compared)))
    found: dict[Key, list[Cost]] = {key: [] for key in keys}
    for number in range(rounds + 1):
        for name, load in keys if number % 2 else reversed(keys):
            both[name].send(load)
            cost = both[name].recv()
            if number:
                found[name, load].append(cost)
    return found


def row(
    name: str, temperature: float, loads: Mapping[str, tuple[Key, Key]], found: Mapping[Key, Sequence[Cost]]
) -> str:
    """Return the line of the table for a model and a temperature."""
    cells = [name, TEMPERATURES[temperature]]
    for what, (ours, theirs) in loads.items():
        if what == "memory":
            cells.append(f"{found[ours][0].blocks / found[theirs][0].blocks:.2f}")
            continue
        whole, *halves = (
            cpu(found[theirs][part], what) / cpu(found[ours][part], what)
            for part in (slice(None), slice(0, None, 2), slice(1, None, 2))
        )
        cells.append(f"**{whole:.3f}** ({halves[0]:.3f}, {halves[1]:.3f})")
    return f"| {' | '.join(cells)} |"


def cpu(rounds: Sequence[Cost], what: str) -> float:
    """Return the CPU seconds of a load: of each of its steps, the fewest of all rounds."""
    steps: list[float] = [min(each) for each in zip(*(one.steps for one in rounds), strict=True)]
    return sum(steps[: rounds[0].short_steps] if what == "beside" else steps)


if __name__ == "__main__":
    main()
