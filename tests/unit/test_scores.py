"""The scores of an evaluation: rows from what the harness returns, the table, and the picture."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

from megatron.flagscale.evaluation.picture import picture
from megatron.flagscale.evaluation.scores import Score, scores_of, table

RESULTS = {
    "results": {
        "mine": {
            "name": "mine",
            "alias": "mine",
            "sample_len": 8,
            "acc,none": 0.25,
            "acc_stderr,none": 0.1637,
            "perplexity,none": 12.5,
            "perplexity_stderr,none": "N/A",
            "exact_match,strict": 1,
            "exact_match_stderr,strict": math.nan,
        }
    },
    "n-shot": {"mine": 2},
    "higher_is_better": {"mine": {"acc": True, "perplexity": False}},
}


def test_every_metric_becomes_a_score() -> None:
    first = Score("m", 10, "mine", "acc", 0.25, 0.1637, 2, 8, True)
    assert list(scores_of(RESULTS, "m", 10)) == [
        first,
        replace(first, metric="perplexity", value=12.5, stderr=None, higher_is_better=False),
        replace(first, metric="exact_match (strict)", value=1.0, stderr=None, higher_is_better=None),
    ]


def test_the_table_of_one_model_has_no_column_for_it() -> None:
    assert table([*scores_of(RESULTS, "m", None)]).splitlines() == [
        "task  metric                  value  stderr  n-shot  examples",
        "mine  acc ↑                  0.2500  0.1637       2         8",
        "mine  perplexity ↓          12.5000       -       2         8",
        "mine  exact_match (strict)   1.0000       -       2         8",
    ]


def test_the_table_of_several_models_is_ordered_by_task_and_metric() -> None:
    scores = [one for name in ("b", "a") for one in scores_of(RESULTS, name, None)]
    lines = table(scores).splitlines()
    assert lines[0].split() == ["model", "task", "metric", "value", "stderr", "n-shot", "examples"]
    assert [line.split()[0] for line in lines[1:]] == ["b", "a"] * 3


def _dots(text: str) -> list[tuple[float, float, str]]:
    root = ElementTree.fromstring(text)
    name = "{http://www.w3.org/2000/svg}"
    return [
        (float(one.get("cx", "")), float(one.get("cy", "")), one.findtext(f"{name}title") or "")
        for one in root.iter(f"{name}circle")
    ]


def test_the_picture_places_models_at_their_iterations() -> None:
    one = next(scores_of(RESULTS, "iter_0000010", 10))
    further = [(20, 0.5, "iter_0000020"), (50, 0.75, "iter_0000050")]
    scores = [one, *(replace(one, iteration=at, value=value, model=name) for at, value, name in further)]
    text = picture(scores)
    (a, high, title), (b, middle, _), (c, low, _) = _dots(text)
    assert title == "iter_0000010: 0.2500 ± 0.1637"
    assert (b - a) * 3 - (c - b) < 0.1, "the second distance is three times the first one"
    assert high > middle > low, "a higher score is further up"
    assert abs((high - middle) - (middle - low)) < 0.1
    assert re.search(r">iteration<", text)


def test_models_without_iterations_are_side_by_side() -> None:
    one = next(scores_of(RESULTS, "a", None))
    text = picture([one, replace(one, model="b"), replace(one, model="c", value=math.nan)])
    (a, _, _), (b, _, _) = _dots(text)
    assert a < b, "a value that is no number is left out"
    assert ">models<" in text
