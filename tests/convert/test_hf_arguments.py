"""The arguments of the model in a Hugging Face folder, against those of a training that its file asks for."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks.resume import Saved, resume_violations
from flagscale.errors import UserError
from flagscale.run.env import import_path
from flagscale_testing.conversion import task_argv_of
from megatron.flagscale.args import engine_parser
from megatron.flagscale.convert.hf_arguments import arguments_in
from megatron.flagscale.convert.hf_config import read_config
from megatron.flagscale.convert.megatron_args import task_arguments
from tests.convert.public_configs import CONFIGS

ROOT = Path(__file__).parents[2]


def folder_of(config: dict[str, Any], folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    return engine_parser()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_training_with_the_arguments_of_the_conversion_is_not_refused(
    name: str, parser: ArgumentParser, tmp_path: Path
) -> None:
    family, config = CONFIGS[name]
    source = folder_of(config, tmp_path)
    given = task_argv_of(task_arguments(read_config(config, name, family)))
    now = vars(parser.parse_args(given))
    saved = Saved("it", arguments_in(source), resumes=False, is_huggingface=True)
    assert [*resume_violations(saved, now)] == []
    refused = dict(resume_violations(saved, {**now, "hidden_size": 32, "layernorm_epsilon": 0.5}))
    assert refused.keys() == {"hidden_size", "layernorm_epsilon"}


@pytest.mark.parametrize("content", ["{", "[]", '{"architectures": ["GPT2LMHeadModel"]}'])
def test_the_launcher_gets_the_reasons(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError) as refused:
        arguments_in(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "megatron.flagscale.convert.hf_arguments", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": import_path(str(ROOT))},
    )
    problems = [[one.what, one.where, one.hint] for one in refused.value.problems]
    assert json.loads(done.stdout) == {"problems": problems}
