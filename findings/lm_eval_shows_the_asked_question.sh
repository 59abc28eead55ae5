#!/usr/bin/env bash
# lm_eval 0.4.13, Python 3.12; seen on 2026-11-30.
#
# A task of one's own with `num_fewshot`, and with a test split only, shows some models the very question that is
# asked, with its answer, as an example: the score is too good. The harness says that examples from the test split
# are "not recommended", but not that. With `fewshot_split: test`, which names the same examples, it leaves out the
# question that is asked.
#
# Output seen (6 questions, 1 example each):
#   test_split: test: 1 of 6 prompts show the answer to their question
#   test_split: test, fewshot_split: test: 0 of 6 prompts show the answer to their question
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet lm_eval==0.4.13
cat > "$folder/show.py" <<'PYTHON'
import json
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

QUESTIONS = ("what is red?", "what is blue?", "who is it?", "a dog?", "tea or sun?", "where?")


class Silent(LM):
    """A model that answers nothing, and keeps the prompts."""

    prompts: list[str] = []

    def generate_until(self, requests):
        self.prompts = [one.args[0] for one in requests]
        return [""] * len(requests)

    def loglikelihood(self, requests):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def prompts(**keys: str) -> list[str]:
    """Return the prompts of a task with one example."""
    folder = Path(*("-".join(keys.values()),))
    folder.mkdir()
    data = folder.absolute() / "data.jsonl"
    data.write_text("".join(json.dumps({"q": one, "answer": f"<{one}>"}) + "\n" for one in QUESTIONS))
    task = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "exact_match"}],
        "num_fewshot": 1,
        **keys,
    }
    (folder / "mine.yaml").write_text(json.dumps(task))
    model = Silent()
    simple_evaluate(model, tasks=["mine"], task_manager=TaskManager(include_path=str(folder), include_defaults=False))
    return model.prompts


for keys in ({"test_split": "test"}, {"test_split": "test", "fewshot_split": "test"}):
    shown = sum(f"<{prompt.splitlines()[-1]}>" in prompt for prompt in prompts(**keys))
    named = ", ".join(f"{name}: {value}" for name, value in keys.items())
    print(f"{named}: {shown} of {len(QUESTIONS)} prompts show the answer to their question")
PYTHON
export HF_HOME="$folder/home"
seen=$(cd "$folder" && venv/bin/python show.py 2>errors) || { cat "$folder/errors"; exit 1; }
expected=$(sed -n 's/^#   //p' "$0")
echo "$seen"
diff <(echo "$expected") <(echo "$seen") || { echo "the behaviour has changed"; exit 1; }
