"""Read files written for FlagScale v0.6.0: translate keys that still have an effect, refuse others by name.

No key is ignored silently; the tables are at the end of this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

from flagscale.config.compat_tokenizers import with_tokenizer
from flagscale.config.engine_args import FlatKey, Unknown
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem


def translate_experiment(tree: dict[str, Any], source_map: SourceMap, problems: list[Problem]) -> list[str]:
    """Change the experiment level of `tree` in place by the table; return the notices."""
    notices: list[str] = []
    experiment = tree.get("experiment")
    if not isinstance(experiment, dict):
        return notices
    for key, change in EXPERIMENT.items():
        parent, _, name = key.rpartition(".")
        node = experiment.get(parent) if parent else experiment
        if not isinstance(node, dict) or name not in node:
            continue
        value, path = node.pop(name), f"experiment.{key}"
        if change.act == "rename":
            _move(experiment, change.text, value, source_map.where(path), problems)
            notices.append(f"{source_map.where(path)}: renamed to `experiment.{change.text}`")
        elif _is_on(value, change):
            problems.append(_refusal(path, name, change, source_map))
        else:
            notices.append(f"{source_map.where(path)}: dropped because it has no effect")
    _translate_entrypoint(experiment, source_map, notices)
    return notices


def _move(experiment: dict[str, Any], target: str, value: Any, where: str, problems: list[Problem]) -> None:
    """Move a value to the current place of its key, unless that is given too."""
    group, _, name = target.rpartition(".")
    node = experiment[group] = experiment.get(group) or {}
    if not isinstance(node, dict):
        return  # reported as a wrong type
    if node.setdefault(name, value) != value:
        what = f"given twice with different values: {value!r} here, {node[name]!r} at experiment.{target}"
        problems.append(Problem(what, where, "remove the key here"))


def _translate_entrypoint(experiment: dict[str, Any], source_map: SourceMap, notices: list[str]) -> None:
    task = experiment.get("task")
    if not isinstance(task, dict):
        return
    entrypoint = str(task.get("entrypoint")).removeprefix("./")
    if entrypoint in ENTRYPOINTS:
        where = source_map.where("experiment.task.entrypoint")
        notices.append(f"{where}: `{task['entrypoint']}` is now `{ENTRYPOINTS[entrypoint]}`")
        task["entrypoint"] = ENTRYPOINTS[entrypoint]


def translate_task(
    flat_keys: list[FlatKey], source_map: SourceMap, problems: list[Problem]
) -> tuple[list[FlatKey], dict[str, str], list[str]]:
    """Apply the table to the task level; return (flat keys, environment that replaces keys, notices)."""
    kept: list[FlatKey] = []
    notices: list[str] = []
    environment: dict[str, str] = {}
    flat_keys = with_tokenizer(flat_keys, source_map, problems, notices)
    for flat_key in [*_with_ffn_size(flat_keys, source_map, notices)]:
        change = TASK.get(flat_key.name)
        if flat_key.value is Unknown.VALUE:
            if change is None or change.act == "rename":
                kept.append(replace(flat_key, name=change.text if change else flat_key.name))
        elif flat_key.name in ("wandb_api_key", "wandb_mode"):
            if flat_key.value:
                text = source_map.text(flat_key.path, flat_key.value) or str(flat_key.value)
                environment[flat_key.name.upper()] = text
        elif change is None:
            kept.append(flat_key)
        elif change.act == "rename":
            notices.append(f"{source_map.where(flat_key.path)}: renamed to `{change.text}`")
            kept.append(replace(flat_key, name=change.text))
        elif change.act == "refuse" and _is_on(flat_key.value, change):
            problems.append(_refusal(flat_key.path, flat_key.name, change, source_map))
        else:
            why = change.text if change.act == "drop" else "it has no effect"
            notices.append(f"{source_map.where(flat_key.path)}: dropped because {why}")
    return kept, environment, notices


def ffn_hidden_size(hidden_size: int, multiple_of: int, multiplier: float = 1.0) -> int:
    """Return the width of a SwiGLU feed-forward layer by Llama's rule: 2/3 of 4h, scaled, rounded up."""
    width = int(multiplier * int(2 * 4 * hidden_size / 3))
    return multiple_of * ceil(width / multiple_of)


def _with_ffn_size(flat_keys: list[FlatKey], source_map: SourceMap, notices: list[str]) -> Iterator[FlatKey]:
    """Replace `multiple_of` and `hidden_dim_multiplier` with the `ffn_hidden_size` that they stand for.

    As in v0.6.0, they have an effect only with SwiGLU and without an explicit `ffn_hidden_size`.
    """
    named = {flat_key.name: flat_key for flat_key in flat_keys}
    values = {flat_key.name: flat_key.value for flat_key in flat_keys}
    rule, scale = values.get("multiple_of"), values.get("hidden_dim_multiplier")
    unused = ""
    if values.get("ffn_hidden_size") is not None:
        unused = "ffn_hidden_size is given"
    elif not values.get("swiglu"):
        unused = "it is used only with swiglu"
    elif rule is None:
        unused = "it is used only with multiple_of"
    for flat_key in flat_keys:
        if flat_key.name not in ("multiple_of", "hidden_dim_multiplier"):
            yield flat_key
        elif unused:
            notices.append(f"{source_map.where(flat_key.path)}: dropped because {unused}")
        elif flat_key.name == "multiple_of":
            hidden = values.get("hidden_size")
            if not all(map(_is_positive, (rule, scale or 1.0))):
                yield flat_key  # reported as an unknown argument
                continue
            if not _is_positive(hidden):
                yield FlatKey("ffn_hidden_size", Unknown.VALUE, flat_key.path)
                continue
            size = ffn_hidden_size(int(values["hidden_size"]), int(flat_key.value), float(scale or 1.0))
            rules = [named[name].path for name in ("multiple_of", "hidden_dim_multiplier") if name in named]
            notices.append(f"{', '.join(map(source_map.where, rules))}: is now `ffn_hidden_size: {size}`")
            yield FlatKey("ffn_hidden_size", size, flat_key.path)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_on(value: Any, change: Change) -> bool:
    if isinstance(value, bool):
        return value
    return bool(value) and value != change.off


def _refusal(path: str, name: str, change: Change, source_map: SourceMap) -> Problem:
    return Problem(
        f"`{name}` of FlagScale v0.6.0 is no longer supported", source_map.where(path), change.text
    )


@dataclass(frozen=True)
class Change:
    """The treatment of a key: it is renamed, dropped with a notice, or refused.

    A refused key is dropped if its value has no effect: null, false, 0, an empty value, `off`.
    """

    act: Literal["rename", "drop", "refuse"]
    text: str
    off: Any = None


def _rename(name: str) -> Change:
    return Change("rename", name)


def _drop(why: str) -> Change:
    return Change("drop", why)


def _refuse(instead: str, off: Any = None) -> Change:
    return Change("refuse", instead, off)


def _each(keys: str, change: Change) -> dict[str, Change]:
    return dict.fromkeys(keys.split(), change)


TASK: Mapping[str, Change] = {
    **_each(
        "log_dir details_dir scripts_dir pids_dir",
        _drop("this folder is always below experiment.exp_dir/logs"),
    ),
    **_each(
        "use_rotary_emb_implement rampup_save_interval finetune_dataset_type server_port model_info",
        _drop("v0.6.0 did not read it"),
    ),
    **_each("rotary_interleaved_patch norm_init_weight", _drop("it had no effect on Megatron-core models")),
    "no_async_tensor_model_parallel_allreduce": _drop("the engine decides it"),
    **_each(
        "log_batch_size_to_tensorboard log_learning_rate_to_tensorboard", _drop("the engine always logs it")
    ),
    "data_impl": _drop("data is always read by memory mapping"),
    "tokenizer_path": _rename("tokenizer_model"),
    "rampup_batch_size": _refuse(
        "Megatron ignores it now; use step_batch_size_schedule: '0:32 2M:64 ...' (tokens:batch) instead of "
        "global_batch_size"
    ),
    **_each(
        "apply_init_customized apply_init_norm_customized use_legacy_models"
        " init_method_std_scaled_embed init_method_std_scaled_output"
        " init_method_std_scaled_attn_q init_method_std_scaled_attn_k init_method_std_scaled_attn_v"
        " init_method_std_scaled_ffn_w1 init_method_std_scaled_ffn_w2 init_method_std_scaled_ffn_w3"
        " init_weight_attn_norm init_weight_ffn_norm init_weight_output_norm",
        _refuse("only Megatron's legacy models read it, which no longer exist; remove the key"),
    ),
    "wandb_log_model": _refuse("set W&B's own environment variables in experiment.envs instead"),
    "wandb_log_model_interval": _drop("wandb_log_model is no longer supported"),
    "save_param_index_maps_only": _refuse("remove the key: checkpoints contain their own index (torch_dist)"),
    "save_when_num_microbatches_change": _refuse("use save_interval instead"),
    "no_shared_fs": _refuse("set experiment.runner.no_shared_fs instead"),
    "ulysses_sp_parallel_size": _refuse(
        "use context_parallel_size (with cp_comm_type: a2a, if TransformerEngine is installed)", off=1
    ),
    **_each(
        "extra_valid_interval extra_valid_data_path",
        _refuse(
            "list the prefixes of all validation sets, without token counts, in valid_data_path and their "
            "tags in validation_set_names; set multiple_validation_sets: true and full_validation: true; "
            "for intervals of their own, use validation_set_intervals (one per set)"
        ),
    ),
    "apply_sft_dataset_separated_loss_mask_if_existed": _refuse(
        "instruction tuning is not available in this version"
    ),
    "device_type": _refuse("set experiment.runner.platform, or `type=` in the hostfile, instead"),
    "auto_tune": _refuse("the tuner is not available in this version"),
    "eval_metric": _refuse("evaluation tasks are no longer supported"),
    **_each(
        "valid_path dataset_config prompt_path freeze_LM freeze_ViT language_model_type vision_model_type"
        " disable_vision_class_token allow_missing_vision_projection_checkpoint use_te dataloader_save"
        " interleaved_dataset training_dataset_only image_aspect_ratio mm_patch_merge_type"
        " image_grid_pinpoints use_pos_skipping pos_skipping_range",
        _refuse("training on images and text is not available in this version"),
    ),
}

WITH_OWN_RULES = (
    "multiple_of",
    "hidden_dim_multiplier",
    "wandb_mode",
    "wandb_api_key",
    "special_tokens_file",
)
"""Task keys that are not simply renamed or dropped; see `translate_task` and `with_tokenizer`."""

EXPERIMENT: Mapping[str, Change] = {
    "shell_cmds": _refuse("v0.6.0 did not read it; use experiment.cmds.before_start"),
    "ssh_port": _rename("runner.ssh_port"),
    "auto_tuner": _refuse("the tuner is not available in this version"),
}

ENTRYPOINTS: Mapping[str, str] = dict.fromkeys(
    (f"flagscale/train/train_{model}.py" for model in ("aquila", "llama", "mixtral", "gpt")),
    "megatron.flagscale.train_gpt",
)
