"""The program that runs on each host: `python -m toy_evaluator.score --answers FILE ...`."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--answers", required=True, help="file with one answer per line")
    parser.add_argument("--expected", default="yes", help="the right answer")
    parser.add_argument("--metric", choices=("share", "count"), default="share")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to wait before each answer")
    return parser


def main() -> None:
    options = parser().parse_args()
    answers = Path(options.answers).read_text(encoding="utf-8").split()
    right = 0
    for number, answer in enumerate(answers, start=1):
        time.sleep(options.pause)
        right += answer == options.expected
        progress = {"done": number, "total": len(answers), "tokens_per_s": 0.0}
        Path(os.environ["FLAGSCALE_PROGRESS_FILE"]).write_text(json.dumps(progress), encoding="utf-8")
    print("score:", right / len(answers) if options.metric == "share" else right, flush=True)


if __name__ == "__main__":
    main()
