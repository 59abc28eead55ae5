"""Scan a job's data on the host that holds it, once, if it has no facts file that gives its range of ids."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagscale.checks.indexed import problems
from flagscale.checks.scans import remember_range, stamp
from flagscale.checks.vocabulary import id_violation, unscanned, vocabulary_of

_SCANNER = "megatron.flagscale.id_range"


def scan(inputs: Mapping[str, Any], cwd: Path) -> list[str]:
    """Read the data whose ids are not known yet, and return what is wrong with them.

    Later calls, and `dryrun` on this host, know the result until the data changes.
    """
    unknown = [prefix for prefix in unscanned(inputs, cwd) if not problems(prefix)]
    if not unknown:
        return []
    stamps = [stamp(prefix) for prefix in unknown]
    root = Path(__file__).resolve().parents[2]
    scanner = subprocess.run(
        [sys.executable, "-m", _SCANNER, *map(str, unknown)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    size, wrong = vocabulary_of(inputs, cwd), []
    for prefix, before, line in zip(unknown, stamps, scanner.stdout.splitlines(), strict=False):
        answer = json.loads(line)
        remember_range(prefix, before, answer["smallest"], answer["largest"])
        if what := id_violation(prefix, (answer["smallest"], answer["largest"]), size):
            wrong.append(what)
    if scanner.returncode:
        last = scanner.stderr.strip().splitlines()[-1:]
        wrong.append(": ".join(["the token ids of the data could not be read", *last]))
    return wrong
