"""What became of every key of FlagScale v0.6.0 that means something else, or nothing, today."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Change:
    """What happens to a key: it has another name, it is dropped with a notice, or it is refused.

    A refused key is dropped where its value switches nothing on: null, false, 0, an empty value, `off`.
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


def _prefixed(prefix: str, endings: Iterable[str], change: Change) -> dict[str, Change]:
    return {prefix + ending: change for ending in endings}


TASK: Mapping[str, Change] = {
    **_each(
        "log_dir details_dir scripts_dir pids_dir",
        _drop("this folder is always below experiment.exp_dir/logs"),
    ),
    **_each(
        "use_rotary_emb_implement rampup_save_interval finetune_dataset_type server_port model_info",
        _drop("nothing read it in v0.6.0"),
    ),
    **_each("rotary_interleaved_patch norm_init_weight", _drop("it did nothing on Megatron-core models")),
    "no_async_tensor_model_parallel_allreduce": _drop("the engine decides by itself"),
    **_each(
        "log_batch_size_to_tensorboard log_learning_rate_to_tensorboard", _drop("the engine always logs it")
    ),
    "data_impl": _drop("the data is always read by memory mapping"),
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
        _refuse("only Megatron's legacy models read it; they are gone, remove the key"),
    ),
    "wandb_log_model": _refuse("set it through W&B's own environment variables in experiment.envs"),
    "wandb_log_model_interval": _drop("wandb_log_model is gone"),
    **_prefixed(
        "lr_decay_stablelm2_",
        (
            "cosine_samples",
            "cosine_max_lr",
            "cosine_period_samples",
            "rsqrt_samples",
            "decay_samples",
            "alpha",
            "beta",
        ),
        _refuse("the stablelm2 schedule is gone; use lr_decay_style: WSD or cosine", off=1.0),
    ),
    "save_param_index_maps_only": _refuse("checkpoints carry their own index (torch_dist)"),
    "save_when_num_microbatches_change": _refuse("set save_interval"),
    "finetune_with_optim": _refuse("use finetune: true (it starts with a fresh optimizer)"),
    "no_shared_fs": _refuse("set experiment.runner.no_shared_fs"),
    "ulysses_sp_parallel_size": _refuse(
        "use context_parallel_size (with cp_comm_type: a2a, where TransformerEngine is installed)", off=1
    ),
    **_each("extra_valid_interval extra_valid_data_path", _refuse("give the sets with valid_data_path")),
    "special_tokens_file": _refuse("keep the special tokens in the tokenizer's folder"),
    "apply_sft_dataset_separated_loss_mask_if_existed": _refuse(
        "training on instructions is not available in this version"
    ),
    "device_type": _refuse("set experiment.runner.platform, or `type=` in the hostfile"),
    "auto_tune": _refuse("the tuner is not available in this version"),
    "eval_metric": _refuse("the evaluation tasks are gone"),
    **_each(
        "valid_path dataset_config prompt_path freeze_LM freeze_ViT language_model_type vision_model_type"
        " disable_vision_class_token allow_missing_vision_projection_checkpoint use_te dataloader_save"
        " interleaved_dataset training_dataset_only image_aspect_ratio mm_patch_merge_type"
        " image_grid_pinpoints use_pos_skipping pos_skipping_range",
        _refuse("training on images and text is not available in this version"),
    ),
}

WITH_OWN_RULES = ("multiple_of", "hidden_dim_multiplier", "wandb_mode", "wandb_api_key")
"""Task keys that are not simply renamed or dropped; see `v060.translate_task`."""

EXPERIMENT: Mapping[str, Change] = {
    "shell_cmds": _refuse("nothing read it in v0.6.0; use experiment.cmds.before_start"),
    "ssh_port": _rename("runner.ssh_port"),
    "auto_tuner": _refuse("the tuner is not available in this version"),
    "runner.per_node_task": _refuse("start one experiment a host"),
}

TOKENIZERS: Mapping[str, str] = dict.fromkeys(
    (
        "AquilaTokenizerFS",
        "HFTokenizerFS",
        "HFTokenizersTokenizerFS",
        "Llama3TokenizerFS",
        "QwenTokenizerFS",
        "Qwen2TokenizerFS",
    ),
    "HuggingFaceTokenizer",
)

ENTRYPOINTS: Mapping[str, str] = dict.fromkeys(
    (f"flagscale/train/train_{model}.py" for model in ("aquila", "llama", "mixtral", "gpt")),
    "megatron.flagscale.train_gpt",
)
