"""Compare the tuner's choice with exhaustive measurement: every legal layout of a tiny model on CPU ranks.

    python -m benchmarks.auto_tune FOLDER [--ranks 2] [--repeats 10] [--keep 3] [--share 0.25]
                                   [--iterations 10] [--chips FILE] [--fake]

First the tuner chooses a layout, with at most `--share` of them as trials, repetitions included. Then every
layout is measured once, in random order. The `--keep` fastest of them and the chosen one are measured in
`--repeats` rounds, each in another order. Printed: the ratio of the chosen layout's time to that of the best
one with its 95 % interval, and the share of the layouts that the tuner tried. The best of many noisy figures
looks better than it is. Therefore the best one of the odd rounds is compared by the even ones, and the other
way round.

FOLDER keeps everything, and the same command continues. Nothing else should run on the machine: on two idle
cores, it takes about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flagscale.config.command import Request
from flagscale.config.source_map import SourceMap
from flagscale.formats import seconds_text
from flagscale.plan.prepare import prepare
from flagscale.tuning.begin import Tuning, begin
from flagscale.tuning.figures import label
from flagscale.tuning.loop import tune
from flagscale.tuning.requests import trial_request
from flagscale.tuning.trial import run_trial
from flagscale_testing.jobs import fake_trainer

_LEAST = 24
"""Layouts without which the comparison says little."""
_DRAWS = 4000
_LIMIT = 600.0
"""Seconds that one measurement may take."""
_ALL = 0
"""The round in which all layouts are measured."""


def main() -> None:
    given = _parser().parse_args()
    if given.repeats < 2:
        raise SystemExit("error: --repeats is at least 2: one round finds the best, one compares")
    folder: Path = given.folder.absolute()
    request = _request(given, folder)
    tuning = begin(request, prepare(request, "benchmark"), print)
    layouts = [one.changes for one in tuning.prior.candidates]
    print(f"{len(layouts)} legal layouts on {given.ranks} ranks")
    if len(layouts) < _LEAST:
        raise SystemExit(f"error: fewer than {_LEAST} layouts; use more ranks")
    chosen, trials = _choice(request, folder, round(given.share * len(layouts)))
    rows = folder / "measured.jsonl"
    for number, index in _order(given, len(layouts), layouts.index(chosen), rows):
        _measure(tuning, given.iterations, folder, number, index, rows)
    _report(tuning, layouts.index(chosen), trials, _by_round(rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--keep", type=int, default=3, help="the fastest layouts that are repeated")
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--chips", type=Path, help="a profile of this machine (tools/profile_chip.py)")
    parser.add_argument(
        "--fake", action="store_true", help="a trainer that only sleeps, to try the benchmark"
    )
    return parser


def _request(given: argparse.Namespace, folder: Path) -> Request:
    space = {
        "context_parallel_size": [1],
        "micro_batch_size": [1, 2, 4, 8],
        "use_recompute": "auto",
        "recompute_granularity": ["full"],
        "recompute_method": ["uniform"],
    }
    tree: dict[str, Any] = {
        "experiment": {
            "exp_name": "tiny",
            "exp_dir": str(folder / "tuned"),
            "task": {"type": "train", "backend": "megatron"},
            "runner": {"nproc_per_node": given.ranks, "platform": "cpu"},
            "envs": {"OMP_NUM_THREADS": 1},
            "auto_tuner": {
                "space": {**space, "use_distributed_optimizer": [True], "sequence_parallel": [True]},
                "control": {"train_iters": given.iterations},
            },
        },
        "train": {
            "num_layers": 4,
            "hidden_size": 128,
            "ffn_hidden_size": 384,
            "num_attention_heads": 4,
            "seq_length": 128,
            "max_position_embeddings": 128,
            "position_embedding_type": "rope",
            "normalization": "RMSNorm",
            "swiglu": True,
            "disable_bias_linear": True,
            "untie_embeddings_and_output_weights": True,
            "attention_dropout": 0.0,
            "hidden_dropout": 0.0,
            "micro_batch_size": 1,
            "global_batch_size": 16,
            "train_iters": 10,
            "lr": 1e-3,
            "save": None,
            "mock_data": True,
            "tokenizer_type": "NullTokenizer",
            "vocab_size": 1000,
        },
    }
    if given.chips:
        tree["experiment"]["chips"] = str(given.chips.absolute())
    if given.fake:
        tree["experiment"]["task"]["entrypoint"] = str(fake_trainer.__file__)
    config = OmegaConf.create(tree)
    assert isinstance(config, DictConfig)
    return Request(config, SourceMap())


def _choice(request: Request, folder: Path, most: int) -> tuple[Mapping[str, Any], int]:
    """Return the layout that the tuner chooses, and how many trials that took."""
    config = OmegaConf.merge(
        request.config, {"experiment": {"auto_tuner": {"control": {"max_trials": most}}}}
    )
    assert isinstance(config, DictConfig)
    limited = Request(config, request.source_map)
    tune(limited, prepare(limited, "tuner"), print)
    found = json.loads((folder / "tuned/auto_tuner/tuner.json").read_text())
    return found["best"]["changes"], found["trials"]


@dataclass(frozen=True)
class Measured:
    """The time of a step of one layout in one round; None: the trial failed."""

    round: int
    layout: int
    seconds: float | None


def _read(rows: Path) -> list[Measured]:
    return [Measured(**json.loads(line)) for line in rows.read_text().splitlines()] if rows.exists() else []


def _order(given: argparse.Namespace, layouts: int, chosen: int, rows: Path) -> Iterator[tuple[int, int]]:
    """Yield (round, layout) of each measurement that is missing."""
    for number in range(_ALL, given.repeats + 1):
        members = list(range(layouts))
        if number > _ALL:
            times = _by_round(rows)[_ALL]
            members = sorted({*sorted(times, key=times.__getitem__)[: given.keep], chosen})
        random.Random(number).shuffle(members)
        done = {one.layout for one in _read(rows) if one.round == number}
        yield from ((number, index) for index in members if index not in done)


def _measure(tuning: Tuning, iterations: int, folder: Path, number: int, index: int, rows: Path) -> None:
    candidate = tuning.prior.candidates[index]
    run_dir = folder / "measured" / f"round_{number}_layout_{index}"
    request = trial_request(tuning.request, candidate.changes, run_dir, iterations, tuning.batch)
    outcome = run_trial(request, _LIMIT, lambda: False, print)
    print(
        f"round {number}  {label(candidate.changes, tuning.space)}  {seconds_text(outcome.seconds)}",
        flush=True,
    )
    with rows.open("a") as file:
        file.write(f"{json.dumps({'round': number, 'layout': index, 'seconds': outcome.seconds})}\n")


def _by_round(rows: Path) -> dict[int, dict[int, float]]:
    found: dict[int, dict[int, float]] = defaultdict(dict)
    for one in _read(rows):
        if one.seconds:
            found[one.round][one.layout] = one.seconds
    return found


def _means(measured: Mapping[int, Mapping[int, float]], rounds: Sequence[int]) -> dict[int, float]:
    """Return the mean time of each layout that was measured in all of these rounds."""
    members = set.intersection(*({*measured[number]} for number in rounds))
    return {layout: fmean(measured[number][layout] for number in rounds) for layout in members}


def _report(tuning: Tuning, chosen: int, trials: int, measured: Mapping[int, Mapping[int, float]]) -> None:
    layouts = [label(one.changes, tuning.space) for one in tuning.prior.candidates]
    once = measured[_ALL]
    print(f"\nall layouts, once: {seconds_text(min(once.values()))} to {seconds_text(max(once.values()))}")
    rounds = sorted(number for number in measured if number > _ALL)
    means = _means(measured, rounds)
    for layout in sorted(means, key=means.__getitem__):
        mark = ", chosen" if layout == chosen else ""
        print(f"{seconds_text(means[layout]):>8}  {layouts[layout]}{mark}")
    ratios = []
    for rest in (0, 1):
        times = _means(measured, [number for number in rounds if number % 2 != rest])
        best = min(times, key=times.__getitem__)
        compared = [measured[number] for number in rounds if number % 2 == rest]
        ratios += [log(one[chosen] / one[best]) for one in compared if {chosen, best} <= one.keys()]
    draws = random.Random(0)
    drawn = sorted(fmean(draws.choices(ratios, k=len(ratios))) for _ in range(_DRAWS))
    low, high = (exp(drawn[int(part * (_DRAWS - 1))]) for part in (0.025, 0.975))
    print(f"chosen / best {exp(fmean(ratios)):.3f} (95 %: {low:.3f} to {high:.3f}, {len(ratios)} rounds)")
    print(f"trials {trials} of {len(layouts)} layouts ({100 * trials / len(layouts):.0f} %)")


if __name__ == "__main__":
    main()
