"""Instruction tuning: packed samples, and the same training as transformers for the same conversations."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from flagscale.config.load import load_experiment
from flagscale.config.source_map import SourceMap
from flagscale.engines.megatron.adapter import MEGATRON
from flagscale.values import Host
from flagscale_testing.conversations import LENGTH, drawn, write_conversations
from flagscale_testing.jobs.demo import TINY
from flagscale_testing.ranks.conversations import LAYOUTS, PROGRAM, STEPS, Figures, Outcome, trained
from flagscale_testing.ranks.forked import Run, run_all
from flagscale_testing.ranks.layouts import COMMON, CP2, EXPERTS, LLAMA, PP2, TP2
from flagscale_testing.ranks.training import ROOT
from megatron.flagscale.sft.sample import lengths_of, sample_of

pytestmark = pytest.mark.filterwarnings("ignore")  # the engine warns that TransformerEngine is missing
FAST = ("not packed", "CP2")
TRAIN, VALID = drawn(24), drawn(7, seed=2)


def test_labels_and_masks_stay_within_a_conversation() -> None:
    first = np.array([11, 12, 13]), np.array([0, 1, 1])
    second = np.array([21, 22]), np.array([1, 1])
    sample = sample_of([first, second], 8)
    assert sample["tokens"].tolist() == [11, 12, 13, 21, 22, 0, 0, 0]
    assert sample["labels"].tolist() == [12, 13, 0, 22, 0, 0, 0, 0]
    assert sample["loss_mask"].tolist() == [1, 1, 0, 1, 0, 0, 0, 0]
    assert sample["position_ids"].tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    batch = torch.utils.data.default_collate([sample, sample_of([second], 2)][:1])
    assert lengths_of(batch["position_ids"], batch["padding"]) == [3, 2]
    full = torch.utils.data.default_collate([sample_of([second, second], 4)])
    assert lengths_of(full["position_ids"], full["padding"]) == [2, 2]


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Figures, dict[str, Outcome]]:
    names = LAYOUTS if request.config.getoption("--slow") else FAST
    return trained(names, tmp_path_factory.mktemp("sft"), TRAIN, VALID)


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
def test_losses_and_gradients_are_those_of_transformers(
    name: str, outcomes: tuple[Figures, dict[str, Outcome]]
) -> None:
    expected, found = outcomes
    assert not found[name].error
    losses, norms = found[name].figures.difference(expected)
    assert losses < 1e-5
    assert norms < 1e-4


@pytest.mark.parametrize("name", FAST)
def test_consumed_tokens_are_those_of_conversations(
    name: str, outcomes: tuple[Figures, dict[str, Outcome]]
) -> None:
    assert outcomes[1][name].consumed_tokens == STEPS * sum(len(ids) for ids, _ in TRAIN)


PADDED = {
    "shorter": (1, LENGTH, ""),
    "longer": (1, 96, ""),
    "longer, TP2 SP PP2": (4, 96, f"{TP2} --sequence-parallel {PP2} --expert-tensor-parallel-size 1"),
    "longer, CP2": (2, 96, CP2),
}
"""By name: ranks, tokens of a sample, and layout. A sample is one conversation, so only padding differs."""
BALANCED = f"""{LLAMA} {EXPERTS} --moe-router-score-function sigmoid --moe-router-enable-expert-bias
    --moe-router-bias-update-rate 0.1 --moe-router-load-balancing-type seq_aux_loss
    --moe-aux-loss-coeff 1 --moe-z-loss-coeff 0.1"""


@pytest.mark.slow
def test_padding_does_not_count_in_the_balance_of_experts(tmp_path: Path) -> None:
    prefix = write_conversations(tmp_path / "train", TRAIN[:4])
    options = "--micro-batch-size 1 --no-packing --calculate-per-token-loss --train-iters 2"
    argv = shlex.split(f"{COMMON} {BALANCED} {options} --global-batch-size 4")
    runs = []
    for name, (ranks, length, layout) in PADDED.items():
        sizes = ("--seq-length", str(length), "--max-position-embeddings", str(length))
        own = (*argv, *sizes, *shlex.split(layout), "--train-data-path", prefix)
        runs.append(Run(name, ranks, (*own, "--data-cache-path", str(tmp_path / "cache")), PROGRAM))
    curves = run_all(runs, tmp_path)
    expected = curves["shorter"]
    for found in curves.values():
        assert not found.error
        assert found.losses == pytest.approx(expected.losses, abs=1e-5)
        assert found.grad_norms == pytest.approx(expected.grad_norms, rel=1e-4)


@pytest.mark.slow
def test_the_example_trains_on_a_cpu(tmp_path: Path) -> None:
    paths = {name: write_conversations(tmp_path / name, TRAIN) for name in ("train", "valid")}
    overrides = [
        *TINY,
        f"experiment.exp_dir='{tmp_path}/run'",
        *("train.model.micro_batch_size=1", "train.model.global_batch_size=4", "train.model.eval_iters=1"),
        *("train.model.train_iters=4", "train.model.eval_interval=4", "train.data.num_workers=0"),
        *("train.model.optimizer.lr=1e-2", "train.system.checkpoint.pretrained_checkpoint=null"),
        *(f"train.data.{name}_data_path=['{path}']" for name, path in paths.items()),
        *("train.data.tokenizer.tokenizer_type=NullTokenizer", "train.data.tokenizer.tokenizer_model=null"),
        "+train.data.tokenizer.vocab_size=250",
    ]
    with initialize_config_dir(str(ROOT / "examples" / "aquila" / "conf"), version_base="1.3"):
        loaded = load_experiment(compose("config_sft", overrides), SourceMap())
    assert loaded.experiment
    job = MEGATRON.build(loaded.experiment, (Host(0, "localhost", 2, "cpu"),), SourceMap())
    curve = run_all([Run("example", 2, job.role.argv, PROGRAM)], tmp_path)["example"]
    assert not curve.error
    assert len(curve.losses) == 4
    assert curve.losses[-1] < curve.losses[0]


def dataset(folder: Path, samples: int | None, **changes: Any) -> Any:
    """Build the engine's dataset of the conversations in a folder."""
    from megatron.core.datasets.utils import Split

    from megatron.flagscale.sft.dataset import ConversationDataset, ConversationsConfig

    config = ConversationsConfig(
        random_seed=1, sequence_length=LENGTH, blend=([], None), split="1", **changes
    )
    prefix = str(folder / "train_text_document")
    pairs = ConversationDataset.build_low_level_dataset(prefix, config)
    count = ConversationDataset.numel_low_level_dataset(pairs)
    indices = np.arange(count, dtype=np.int32)
    return ConversationDataset(pairs, prefix, indices, samples, Split.train, config)


def test_a_longer_training_begins_with_the_same_samples(tmp_path: Path) -> None:
    write_conversations(tmp_path / "train", TRAIN)
    short, long = dataset(tmp_path, None), dataset(tmp_path, 100)
    assert len(long) >= 100
    assert len(long) % len(short) == 0
    for place in range(len(short)):
        for name, tensor in short[place].items():
            assert torch.equal(tensor, long[place][name])
    texts = [long[place]["tokens"].tolist() for place in range(2 * len(short))]
    epochs = texts[: len(short)], texts[len(short) :]
    assert sorted(epochs[0]) != sorted(epochs[1])
    tokens = [sorted(token for sample in epoch for token in sample) for epoch in epochs]
    assert tokens[0] == tokens[1]


def test_without_packing_every_conversation_has_a_sample(tmp_path: Path) -> None:
    write_conversations(tmp_path / "train", TRAIN)
    samples = dataset(tmp_path, None, no_packing=True)
    found = []
    for sample in (samples[place] for place in range(len(samples))):
        found.append(sample["tokens"][: LENGTH - int(sample["padding"])].tolist())
    assert sorted(found) == sorted(ids for ids, _ in TRAIN)
