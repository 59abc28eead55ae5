"""Conversations from the tool to the trainer: a blend of two data sets, two validation sets, and a resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flagscale.node import processes
from flagscale.run.env import import_path
from flagscale.run.rundir import RunDir
from flagscale_testing.chat_templates import write_chat_tokenizer
from flagscale_testing.chats import CHATML, conversation, write_lines
from flagscale_testing.jobs.demo import TINY
from flagscale_testing.ranks.training import PATIENCE, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * PATIENCE)]
SETS, RUNS = ("short", "long"), ("whole", "resumed")


def command(*words: object) -> str:
    env = {**os.environ, "PYTHONPATH": import_path(str(ROOT))}
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, timeout=PATIENCE, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def words(tmp_path: Path) -> Iterator[list[str]]:
    """The command and the overrides of `config_sft` with two prepared sets of conversations."""
    tokenizer = write_chat_tokenizer(tmp_path / "tokenizer", CHATML)
    for name, times in zip(SETS, (1, 3), strict=True):
        conversations = [conversation(f"{number}?", "yes! " * times) for number in range(120)]
        source = write_lines(tmp_path / f"{name}.jsonl", *conversations)
        tool = (ROOT / "tools/datasets/chat.py", "--source", source, "--tokenizer", tokenizer)
        command(*tool, "--output", tmp_path / name, "--longest", 64, "--valid-every", 10)
    train, valid = (
        [f"{tmp_path}/{name}/{split}_text_document" for name in SETS] for split in ("train", "valid")
    )
    yield [
        *("--config-path", str(ROOT / "examples/aquila/conf"), "--config-name", "config_sft"),
        *(*TINY, "experiment.runner.nproc_per_node=2"),
        *("train.model.micro_batch_size=2", "train.model.global_batch_size=4", "train.model.eval_iters=1"),
        *("train.model.train_iters=6", "train.model.eval_interval=3", "train.data.num_workers=0"),
        *("train.system.checkpoint.pretrained_checkpoint=null", "train.system.checkpoint.save_interval=3"),
        f"train.data.train_data_path=[0.7,{train[0]},0.3,{train[1]}]",
        f"train.data.valid_data_path=[{valid[0]},{valid[1]}]",
        *(
            "+train.data.multiple_validation_sets=true",
            f"+train.data.validation_set_names=[{','.join(SETS)}]",
        ),
        f"train.data.tokenizer.tokenizer_model={tokenizer}",
    ]
    for name in RUNS:  # of a test that failed
        if plan := RunDir(tmp_path / name).read_plan():
            processes.end(lambda run_id=plan.run_id: processes.of_run(run_id), grace=0)


def test_a_resumed_training_has_the_same_losses(words: Sequence[str], tmp_path: Path) -> None:
    def trained(name: str, *more: str) -> list[dict[str, Any]]:
        command(ROOT / "run.py", *words, f"experiment.exp_dir={tmp_path / name}", *more, "action=test")
        return [json.loads(line) for line in RunDir(tmp_path / name).metrics.read_text().splitlines()]

    whole = trained(RUNS[0])
    trained(RUNS[1], "+train.model.exit_interval=3")
    resumed = trained(RUNS[1])
    assert losses(resumed, "lm_loss") == losses(whole, "lm_loss")
    assert [*losses(whole, "lm_loss")] == [1, 2, 3, 4, 5, 6]
    for name in SETS:
        found = losses(whole, f"validation_loss/{name}")
        assert 6 in found
        assert losses(resumed, f"validation_loss/{name}") == found
    assert losses(whole, "validation_loss/short") != losses(whole, "validation_loss/long")


def losses(records: Sequence[dict[str, Any]], key: str) -> dict[int, float]:
    """Return the values of a key by their iteration."""
    return {record["iteration"]: record[key] for record in records if key in record}
