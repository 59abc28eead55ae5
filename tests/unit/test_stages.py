"""All mistakes at once: those of one stage do not hide those of another, and none is reported twice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from flagscale import cli
from flagscale.cli import main
from flagscale.config.source_map import index_sources


@dataclass(frozen=True)
class Mistake:
    """One override that makes a configuration wrong, and part of the only message that reports it."""

    override: str
    says: str
    unknown: str = ""
    """What nobody can know because of it: `hosts`, or everything of the `task` group."""
    needs: str = ""
    """What must be known to see it: `hosts` (and the task group), or the `task` group."""


MISTAKES = [
    Mistake("action=dryrum", "unknown action `dryrum`"),
    Mistake("no_such_key=1", "unknown key `no_such_key`"),
    Mistake("experiment.exp_name=' '", "experiment.exp_name: input should not be empty"),
    Mistake("experiment.cmds.before_strat=x", "unknown key `before_strat`"),
    Mistake("experiment.envs.A-B=1", "an environment variable's name may contain only"),
    Mistake("experiment.runner.max_restarts=true", "not true or false"),
    Mistake("experiment.runner.master_addr='${nowhere}'", "Interpolation key 'nowhere' not found"),
    Mistake(
        "experiment.runner.nproc_per_node=abc", "`auto` or a whole number of at least 1", unknown="hosts"
    ),
    Mistake("experiment.runner.nnode=1", "unknown key `nnode`", unknown="hosts"),
    Mistake("experiment.runner.options.partition=a", "unknown key `partition`"),
    Mistake("experiment.runner.node_rank=0", "`node_rank` has no effect with type: ssh"),
    Mistake("experiment.runner.hostfile=absent", "hostfile not found", unknown="hosts"),
    Mistake("experiment.runner.platform=nvidja", "unknown platform `nvidja`", unknown="hosts"),
    Mistake("experiment.runner.transport=shs", "unknown transport `shs`"),
    Mistake("experiment.task.backend=megatrn", "unknown engine `megatrn`", unknown="task"),
    Mistake("experiment.task.entrypoint=absent.py", "program not found: `absent.py`"),
    Mistake("train.num_layer=3", "argument `num_layer`", needs="task"),
    Mistake("train.model.lr=fast", "`lr` takes a number, not 'fast'", needs="task"),
    Mistake("train.optimizer=adamw", "`optimizer` cannot be 'adamw'", needs="task"),
    Mistake("train.clip_grad='${nowhere_else}'", "Interpolation key 'nowhere_else' not found"),
    Mistake(
        "train.eval_metric=ppl",
        "evaluate the checkpoints in a job of its own (task.type: evaluate)",
        needs="task",
    ),
    Mistake("experiment.auto_tuner.control.max_time=-1", "input should be greater than 0"),
    Mistake("train.model.hidden_size=33", "hidden_size 33 must be a multiple of 4", needs="task"),
    Mistake("train.data.vocab_size=null", "NullTokenizer needs `vocab_size`", needs="task"),
    Mistake("train.model.global_batch_size=3", "global_batch_size 3 must be a multiple of 2", needs="hosts"),
]


def report(words: list[str], capsys: pytest.CaptureFixture[str], *mistakes: Mistake) -> list[str]:
    """Return the problems that a dryrun reports, one text each; without Hydra, which takes longest."""
    overrides, file = [mistake.override for mistake in mistakes], Path("conf/config.yaml")
    config = OmegaConf.merge(OmegaConf.load(file), OmegaConf.from_dotlist(overrides))
    assert isinstance(config, DictConfig)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_source_map", lambda: index_sources([(file, "")], overrides))
        assert cli._perform(config) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    title, *problems = error.split("\n- ")
    assert title == f"{len(problems)} mistake{'s' if len(problems) > 1 else ''} in the configuration:"
    return problems


def hides(one: Mistake, other: Mistake) -> bool:
    """Return whether a mistake makes it impossible to see another one."""
    return bool(one.unknown and other.needs) and (one.unknown == "task" or other.needs == "hosts")


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.override)
def test_one_mistake_is_reported_once(
    mistake: Mistake, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (problem,) = report(words, capsys, mistake)
    assert mistake.says in problem
    assert main([*words, mistake.override]) == 2
    assert mistake.says in capsys.readouterr().err


@pytest.mark.parametrize("index", range(len(MISTAKES) - 1), ids=lambda index: MISTAKES[index].override)
def test_two_mistakes_are_reported_together(
    index: int, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    one = MISTAKES[index]
    for other in MISTAKES[index + 1 :]:
        problems = report(words, capsys, one, other)
        seen = [mistake for mistake in (one, other) if any(mistake.says in text for text in problems)]
        hidden = [mistake for mistake, by in ((other, one), (one, other)) if hides(by, mistake)]
        assert len(problems) == len(seen), (one.override, other.override, problems)
        assert {*seen} == {one, other} - {*hidden}, (one.override, other.override, problems)


def test_a_mistake_in_every_stage_takes_one_round(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    together = [
        mistake
        for mistake in MISTAKES
        if not any(hides(mistake, other) or hides(other, mistake) for other in MISTAKES)
    ]
    together += [mistake for mistake in MISTAKES if mistake.unknown != "task" and mistake not in together]
    visible = [one for one in together if not any(hides(other, one) for other in together)]
    problems = report(words, capsys, *together)
    assert len(problems) == len(visible) >= 20
    assert all(any(mistake.says in text for text in problems) for mistake in visible)


def test_a_misspelt_task_group_is_one_mistake(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("conf/config.yaml")
    path.write_text(path.read_text().replace("\ntrain:", "\ntrian:"))
    assert main(words) == 2
    assert capsys.readouterr().err == (
        "1 mistake in the configuration:\n- conf/config.yaml:9: trian: unknown key `trian`\n"
        "    did you mean `train`?\n"
    )


@pytest.mark.parametrize("key", ["exp_name", "exp_dir", "task", "backend"])
def test_a_misspelt_required_key_is_one_mistake(
    key: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("conf/config.yaml")
    path.write_text(path.read_text().replace(f"{key}:", f"{key}s:", 1))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("1 mistake")
    assert f"unknown key `{key}s`" in error


V060 = """
defaults: [_self_]
experiment:
  exp_name: aquila
  exp_dir: ./outputs
  task: {type: train, backend: megatron, entrypoint: ./flagscale/train/train_aquila.py}
  runner: {backend: torchrun, nnode: 2, hostfile: hosts, ssh_port: 22}
  envs: {CUDA_DEVICE_MAX_CONNECTIONS: 1, NCCL-DEBUG: INFO}
  auto_tuner: {control: {max_time_per_task: 300}}
  ssh_port: 2222
action: runn
train:
  system:
    tensor_model_parallel_size: 2
    sequence_parallel: true
    precision: {bf16: yes, fp16: true}
    checkpoint: {save_interval: 1_00, ckpt_formt: torch}
  model:
    num_layers: 4
    hidden_size: 64
    num_attention_heads: 3
    seq_length: 128
    max_position_embeddings: 64
    multiple_of: 32
    swiglu: true
    rampup_batch_size: [32, 32, 2000]
    train_samples: ten
    micro_batch_size: 2
    optimizer: {lr: 1e-3, lr_scheduler: {lr: 2e-3}}
  data:
    data_path: absent
    tokenizer: {tokenizer_type: HFTokenizerFS, tokenizer_path: ./absent}
"""
ITS_MISTAKES = [
    "unknown key `nnode`",
    "may contain only letters",
    "given twice with different values: 2222 here, 22 at experiment.runner.ssh_port",
    "unknown action `runn`",
    "hosts:2: `slots=N` is missing",
    "`lr` is given twice with different values",
    "`ckpt_formt`",
    "`rampup_batch_size` needs `global_batch_size`",
    "`train_samples` takes a whole number",
    "give `fp16` or `bf16`, not both",
    "seq_length 128 is larger than max_position_embeddings 64",
    "absent.bin: no such file",
    "absent.idx: no such file",
    "./absent: no such tokenizer",
    "hidden_size 64 must be a multiple of 3",
    "num_attention_heads 3 must be a multiple of 2",
]


def test_a_file_of_v060_with_many_mistakes_takes_one_round(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("conf/config.yaml").write_text(V060)
    Path("hosts").write_text("a slots=8\nb\n")
    assert main(words) == 2
    error = capsys.readouterr().err
    missing = [text for text in ITS_MISTAKES if text not in error]
    assert not missing, error
    assert error.startswith(f"{len(ITS_MISTAKES)} mistakes")
