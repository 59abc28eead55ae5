"""Convert a model of every family there and back: `python -m benchmarks.conversion_table [NAME...]`.

Each small random model is converted from transformers to Megatron, trained for one step at learning rate 0 in
its layouts, and converted back. Its logits are compared, also at 700 tokens in an odd shape, and so are the
greedy continuations by vLLM. Prints the table; without names, also writes it into docs/conversion.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.layouts import write
from flagscale_testing import long_logits, served_greedy
from flagscale_testing.conversion import CASES, Outcome, run_chain
from flagscale_testing.served_greedy import OTHER_IN_VLLM, Continuations

DOCUMENT = Path(__file__).parents[1] / "docs" / "conversion.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"


def table(
    outcomes: Mapping[str, Outcome], at_length: Mapping[str, float], answers: Mapping[str, Continuations]
) -> str:
    """Return the Markdown table of the outcomes, of relative differences, and of answers by vLLM."""
    lines = [
        "| family | round trip | training layouts | round trip with training | max logit difference "
        "| at 700 tokens, relative | first loss difference | greedy tokens of vLLM |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in outcomes.items():
        case = CASES[name]
        padded = " (vocabulary padded)" if case.padded else ""
        loss = "" if found.loss is None else f"{found.loss:.1e}{padded}"
        layouts = "; ".join(layout.name for layout in case.layouts)
        lines.append(
            f"| {name} | {bitwise(found.round_trip)} | {layouts} | {bitwise(found.trained)} "
            f"| {found.logits:.1e} | {at_length[name]:.1e} | {loss} | {_greedy(name, answers)} |"
        )
    return "\n".join(lines)


def bitwise(equal: bool | None) -> str:
    """Return the cell of a table: whether what came back is equal, bit for bit."""
    return "bitwise" if equal else "**differs**"


def _greedy(name: str, answers: Mapping[str, Continuations]) -> str:
    if name not in answers:
        return ""
    found = answers[name]
    if found.refusal:
        return f"refused: {found.refusal.splitlines()[0]}"
    if found.vllm == found.transformers:
        return "equal"
    return "differ ([DeepSeek](#deepseek))" if name in OTHER_IN_VLLM else "**differ**"


def show(text: str, errors: Mapping[str, str]) -> None:
    """Print a table, and what failed, by the name of the model."""
    print(text)
    for name, error in errors.items():
        if error:
            print(f"\n{name}:\n{error}")


def main(names: list[str]) -> int:
    """Run the named cases, or run all and write the table in the document; return 1 if one is not equal."""
    with tempfile.TemporaryDirectory() as folder:
        chain, long, greedy = (Path(folder, name) for name in ("chain", "long", "greedy"))
        for one in (chain, long, greedy):
            one.mkdir()
        outcomes = run_chain(names or CASES, chain)
        at_length = long_logits.differences(outcomes, long)
        answers = served_greedy.answers(served_greedy.all_served(outcomes), greedy)
    text = table(outcomes, at_length, answers)
    show(text, {name: found.error for name, found in outcomes.items()})
    if not names:
        write(DOCUMENT, text, BEGIN, END)
    is_equal = all(found.round_trip and found.trained for found in outcomes.values())
    is_served = all(_greedy(name, answers) == "equal" for name in answers if name not in OTHER_IN_VLLM)
    return 0 if is_equal and is_served else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
