"""Keys of FlagScale v0.6.0 that mean something else today: one table of what happens to each.

A key is renamed or dropped with a notice, or refused with what to do instead; none is ignored in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

from flagscale.config.leaves import Leaf
from flagscale.config.locate import Locator
from flagscale.errors import Problem


@dataclass(frozen=True)
class Change:
    """What became of a v0.6.0 key. `refuse` applies only where the key switches its feature on."""

    act: Literal["rename", "drop", "refuse"]
    text: str


def _rename(name: str) -> Change:
    return Change("rename", name)


_DEAD = Change("drop", "nothing read it in v0.6.0")
_FOLDER = Change("drop", "this folder is always below experiment.exp_dir/logs")
_LEGACY = Change("refuse", "only Megatron's legacy models read it; they are gone, remove the key")
_WANDB_SDK = Change("refuse", "set it through W&B's own environment variables in experiment.envs")
_HETERO = Change("refuse", "heterogeneous meshes are not available in this version")
_REFINED = Change("refuse", "recompute per stage and micro-batch is not available in this version")
_COSINE = Change("refuse", "the stablelm2 schedule is gone; use lr_decay_style: WSD or cosine")
_VALID = Change("refuse", "give the sets with valid_data_path")

TASK: Mapping[str, Change] = {
    "log_dir": _FOLDER,
    "details_dir": _FOLDER,
    "scripts_dir": _FOLDER,
    "pids_dir": _FOLDER,
    "tokenizer_path": _rename("tokenizer_model"),
    "use_rotary_emb_implement": _DEAD,
    "rampup_save_interval": _DEAD,
    "finetune_dataset_type": _DEAD,
    "server_port": _DEAD,
    "model_info": _DEAD,
    "rotary_interleaved_patch": Change("drop", "it did nothing on Megatron-core models"),
    "norm_init_weight": Change("drop", "it did nothing on Megatron-core models"),
    "apply_init_customized": _LEGACY,
    "apply_init_norm_customized": _LEGACY,
    **{f"init_method_std_scaled_{part}": _LEGACY for part in ("embed", "output", "attn_q", "attn_k", "attn_v")},
    **{f"init_method_std_scaled_ffn_w{part}": _LEGACY for part in (1, 2, 3)},
    **{f"init_weight_{part}_norm": _LEGACY for part in ("attn", "ffn", "output")},
    "wandb_log_model": _WANDB_SDK,
    "wandb_log_model_interval": Change("drop", "wandb_log_model is gone"),
    **{f"recompute_{part}_per_stage_micro_batch": _REFINED for part in ("granularity", "method", "num_layers")},
    **{
        f"lr_decay_stablelm2_{part}": _COSINE
        for part in (
            "cosine_samples cosine_max_lr cosine_period_samples rsqrt_samples decay_samples alpha beta".split()
        )
    },
    "save_param_index_maps_only": Change("refuse", "checkpoints carry their own index (torch_dist)"),
    "save_when_num_microbatches_change": Change("refuse", "set save_interval"),
    "finetune_with_optim": Change("refuse", "use finetune: true"),
    "no_shared_fs": Change("refuse", "every host must see the run directory in this version"),
    "ulysses_sp_parallel_size": Change("refuse", "use context_parallel_size with cp_comm_type: a2a"),
    "extra_valid_interval": _VALID,
    "extra_valid_data_path": _VALID,
    "special_tokens_file": Change("refuse", "keep the special tokens in the tokenizer's folder"),
    "apply_sft_dataset_separated_loss_mask_if_existed": Change("refuse", "use sft: true"),
    "device_type": Change("refuse", "set experiment.runner.platform, or `type=` in the hostfile"),
    "auto_tune": Change("refuse", "the tuner is not available in this version"),
    "enable_hetero": _HETERO,
    "hetero_device_types": _HETERO,
    "hetero_current_device_type": _HETERO,
    "hetero_pipeline_layer_split": _HETERO,
    "hetero_process_meshes": _HETERO,
    "hetero_use_cpu_communication": _HETERO,
}

EXPERIMENT: Mapping[str, Change] = {
    "shell_cmds": Change("refuse", "nothing read it in v0.6.0; use experiment.cmds.before_start"),
    "ssh_port": _rename("runner.ssh_port"),
    "auto_tuner": Change("refuse", "the tuner is not available in this version"),
    "runner.no_shared_fs": Change("refuse", "every host must see the run directory in this version"),
    "runner.per_node_task": Change("refuse", "start one experiment a host"),
    "runner.node_rank": Change("refuse", "ranks follow the order of the hostfile"),
}

_TOKENIZERS = {
    name: "HuggingFaceTokenizer"
    for name in (
        "AquilaTokenizerFS HFTokenizerFS HFTokenizersTokenizerFS Llama3TokenizerFS QwenTokenizerFS Qwen2TokenizerFS"
    ).split()
}
_ENTRYPOINTS = ("train_aquila.py", "train_llama.py", "train_mixtral.py", "train_gpt.py")


def translate_experiment(tree: dict[str, Any], locator: Locator, problems: list[Problem]) -> list[str]:
    """Change the experiment level of `tree` in place as the table says; return the notices."""
    notices: list[str] = []
    experiment = tree.get("experiment")
    if not isinstance(experiment, dict):
        return notices
    for key, change in EXPERIMENT.items():
        *parents, name = key.split(".")
        node = experiment
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None  # type: ignore[assignment]
        if not isinstance(node, dict) or name not in node:
            continue
        value, path = node.pop(name), f"experiment.{key}"
        if change.act == "rename":
            target, _, leaf = change.text.rpartition(".")
            experiment.setdefault(target, {}).setdefault(leaf, value)
            notices.append(f"{locator.where(path)}: is `experiment.{change.text}` now")
        elif _is_on(value):
            problems.append(_refusal(path, name, change, locator))
    task = experiment.get("task")
    entrypoint = str(task.get("entrypoint", "")) if isinstance(task, dict) else ""
    if isinstance(task, dict) and entrypoint.removeprefix("./").startswith("flagscale/train/"):
        if entrypoint.rpartition("/")[2] in _ENTRYPOINTS:
            task["entrypoint"] = "megatron.flagscale.train_gpt"
            where = locator.where("experiment.task.entrypoint")
            notices.append(f"{where}: `{entrypoint}` is `megatron.flagscale.train_gpt` now")
    return notices


def translate_task(
    leaves: list[Leaf], locator: Locator, problems: list[Problem]
) -> tuple[list[Leaf], dict[str, str], list[str]]:
    """Apply the table to the task level; return (leaves, environment that replaces keys, notices)."""
    kept: list[Leaf] = []
    notices: list[str] = []
    environment: dict[str, str] = {}
    for leaf in _with_ffn_size(leaves, locator, notices):
        where, change = locator.where(leaf.path), TASK.get(leaf.name)
        if leaf.name in ("wandb_api_key", "wandb_mode"):
            if leaf.value:
                environment[leaf.name.upper()] = str(leaf.value)
        elif leaf.name == "tokenizer_type" and leaf.value in _TOKENIZERS:
            notices.append(f"{where}: `{leaf.value}` is `{_TOKENIZERS[leaf.value]}` now")
            kept.append(replace(leaf, value=_TOKENIZERS[leaf.value]))
        elif change is None:
            kept.append(leaf)
        elif change.act == "rename":
            notices.append(f"{where}: is `{change.text}` now")
            kept.append(replace(leaf, name=change.text))
        elif change.act == "drop":
            notices.append(f"{where}: dropped, {change.text}")
        elif _is_on(leaf.value):
            problems.append(_refusal(leaf.path, leaf.name, change, locator))
    return kept, environment, notices


def ffn_hidden_size(hidden_size: int, multiple_of: int, multiplier: float = 1.0) -> int:
    """Return the width of a SwiGLU feed-forward layer by Llama's rule: 2/3 of 4h, scaled, rounded up."""
    width = int(multiplier * int(2 * 4 * hidden_size / 3))
    return multiple_of * ceil(width / multiple_of)


def _with_ffn_size(leaves: list[Leaf], locator: Locator, notices: list[str]) -> list[Leaf]:
    """Replace `multiple_of` and `hidden_dim_multiplier` by the `ffn_hidden_size` they stand for."""
    named = {leaf.name: leaf for leaf in leaves}
    rule, hidden = named.get("multiple_of"), named.get("hidden_size")
    if rule is None or hidden is None or not isinstance(rule.value, int) or not isinstance(hidden.value, int):
        return leaves
    scale = named.get("hidden_dim_multiplier")
    size = ffn_hidden_size(hidden.value, rule.value, float(scale.value) if scale and scale.value else 1.0)
    notices.append(f"{locator.where(rule.path)}: is `ffn_hidden_size: {size}` now")
    rest = [leaf for leaf in leaves if leaf.name not in ("multiple_of", "hidden_dim_multiplier")]
    return [*rest, Leaf("ffn_hidden_size", size, rule.path)]


def _is_on(value: Any) -> bool:
    return value not in (None, False, 0, 1, "", [], {}) or value is True


def _refusal(path: str, name: str, change: Change, locator: Locator) -> Problem:
    return Problem(f"`{name}` of FlagScale v0.6.0 is not read any more", locator.where(path), change.text)
