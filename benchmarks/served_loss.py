"""Check that the served model predicts held-out text as well as the trained one.

Megatron evaluates the demo's whole validation set; vLLM scores the same tokens, in windows that fit its
context, by prompt log probabilities. Run it after `make demo-serve`: python -m benchmarks.served_loss
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

from flagscale.run.rundir import RunDir

ROOT = Path(__file__).resolve().parents[1]
RUN = (sys.executable, "run.py", "--config-path", "./examples/aquila/conf", "--config-name")
DATA = ROOT / "data" / "demo" / "valid_text_document"
TRAINED = ROOT / "outputs" / "aquila_demo"
WINDOW = 255
"""Tokens: the context of the demo's model is 256, and vLLM generates one token."""
BATCH_TOKENS = 16 * 256
"""Tokens of one evaluation of the demo: global batch size times sequence length."""


def megatron_loss(folder: Path) -> float:
    """Return the loss per token over the whole validation set, as the trainer evaluates it."""
    run(
        "config",
        f"experiment.exp_dir={folder}",
        f"+train.system.checkpoint.load={RunDir(TRAINED).checkpoints}",
        "train.model.train_iters=1000000",  # otherwise it would report that nothing is left to do
        "+train.model.skip_train=true",
        # Instead of `full_validation`, which Megatron 0.19.2 does not support together with eval_iters.
        f"train.model.eval_iters={len(windows()) * WINDOW // BATCH_TOKENS}",
    )
    records = [json.loads(line) for line in RunDir(folder).metrics.read_text().splitlines()]
    return float(next(one["validation_loss"] for one in reversed(records) if "validation_loss" in one))


def vllm_loss(folder: Path) -> float:
    """Return the loss per token over the same text, as scored by the serving engine."""
    prompts = folder / "windows.jsonl"
    prompts.write_text("".join(json.dumps({"prompt_token_ids": window}) + "\n" for window in windows()))
    run(
        "config_inference",
        f"experiment.exp_dir={folder}",
        "~inference.generate.prompts",
        f"+inference.generate.prompts_file={prompts}",
        "inference.generate.sampling={temperature: 0, max_tokens: 1, prompt_logprobs: 0}",
    )
    losses: list[float] = []
    with RunDir(folder).results.open() as results:
        for record in map(json.loads, results):
            scored = zip(record["prompt_token_ids"], record["prompt_logprobs"], strict=True)
            losses += [-choices[str(token)] for token, choices in scored if choices]
    return sum(losses) / len(losses)


def windows() -> list[list[int]]:
    """Return the validation text in windows, each of which begins with the last token of the one before."""
    import numpy
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    documents = IndexedDataset(str(DATA))
    tokens = numpy.concatenate([documents[index] for index in range(len(documents))]).tolist()
    return [tokens[start : start + WINDOW] for start in range(0, len(tokens) - 1, WINDOW - 1)]


def run(config: str, *overrides: str) -> None:
    """Run an example in the foreground."""
    subprocess.run([*RUN, config, "action=test", *overrides], cwd=ROOT, check=True)


def main() -> None:
    """Print both losses and the ratio of the perplexities."""
    with tempfile.TemporaryDirectory() as folder:
        trained = megatron_loss(Path(folder, "trained"))
        Path(folder, "served").mkdir()
        served = vllm_loss(Path(folder, "served"))
    print("\n| | loss per token | perplexity |\n|---|---|---|")
    for name, loss in (("Megatron's validation", trained), ("vLLM, by prompt logprobs", served)):
        print(f"| {name} | {loss:.4f} | {math.exp(loss):.2f} |")
    print(f"\nratio of the perplexities: {math.exp(served - trained):.4f}")


if __name__ == "__main__":
    main()
