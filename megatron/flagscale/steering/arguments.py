"""The arguments by which a training is steered (`flagscale.checks.steering`)."""

from __future__ import annotations

import argparse

from flagscale.checks import steering as keys
from flagscale.formats import option_of


def add_steering_args(group: argparse._ArgumentGroup) -> None:
    """Add the arguments for skipped data, bad losses and slow ranks."""
    for name, unit in ((keys.SAMPLES, "sample"), (keys.ITERATIONS, "iteration")):
        group.add_argument(
            option_of(name),
            metavar="JSON",
            help=f"Do not train on these {unit}s: [first, end] or a list of such pairs. The first {unit} of "
            f"a training is 0, and `end` is the first {unit} that is trained again. Their iterations "
            "count, but make no update.",
        )
    group.add_argument(
        option_of(keys.ON_BAD_LOSS),
        choices=keys.REACTIONS,
        default=keys.STOP,
        help="What to do if the loss or the gradient is NaN or infinite, or the loss exceeds "
        "--bad-loss-factor: stop the training, skip the update, or go back to the newest complete "
        "checkpoint and skip the samples between it and the bad loss.",
    )
    group.add_argument(
        option_of(keys.FACTOR),
        type=float,
        metavar="X",
        help="A loss above X times the median of the last --bad-loss-window losses is bad. By default, no "
        "finite loss is.",
    )
    group.add_argument(
        option_of(keys.WINDOW),
        type=int,
        default=keys.DEFAULT_WINDOW,
        metavar="N",
        help="The number of losses whose median a loss is compared with; the first N are not judged.",
    )
    group.add_argument(
        option_of(keys.MAX_ROLLBACKS),
        type=int,
        default=keys.DEFAULT_ROLLBACKS,
        metavar="N",
        help="With --on-bad-loss rollback: stop the training at the bad loss after N rollbacks.",
    )
    group.add_argument(
        option_of(keys.SLOW_FACTOR),
        type=float,
        default=keys.DEFAULT_SLOW_FACTOR,
        metavar="X",
        help="Report ranks that compute X times as long as the median rank of their pipeline stage in "
        "several logged iterations in a row; 0: do not compare the ranks.",
    )
