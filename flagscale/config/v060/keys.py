"""The keys of FlagScale v0.6.0 that changed: one row each, which `translate` applies and docs show.

No key is ignored silently: docs/from_v060.md is tested to hold the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Change:
    """The treatment of a key: it is renamed, dropped with a notice, or refused.

    A refused one is dropped if the value has no effect: null, false, 0, an empty value, `off`.
    """

    act: Literal["rename", "drop", "refuse"]
    text: str
    """The new name; why it is dropped; or what to do instead."""
    off: Any = None


def _rename(name: str) -> Change:
    return Change("rename", name)


def _drop(why: str) -> Change:
    return Change("drop", why)


def _refuse(instead: str, off: Any = None) -> Change:
    return Change("refuse", instead, off)


def _each(keys: str, change: Change) -> dict[str, Change]:
    return dict.fromkeys(keys.split(), change)


_NO_RETRO = "Retro models no longer exist in the engine; remove the key"

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
    "no_scatter_gather_tensors_in_pipeline": _drop("v0.6.0 did not read it"),
    "use_flash_attn": _drop("the engine does not read it; attention_backend chooses the kernel"),
    "use_mcore_models": _drop("the engine does not read it: it has no other models"),
    "no_async_tensor_model_parallel_allreduce": _drop("the engine decides it"),
    **_each(
        "log_batch_size_to_tensorboard log_learning_rate_to_tensorboard", _drop("the engine always logs it")
    ),
    "data_impl": _drop("data is always read by memory mapping"),
    "tokenizer_path": _rename("tokenizer_model"),
    **_each(
        "apply_init_customized apply_init_norm_customized use_legacy_models"
        " init_method_std_scaled_embed init_method_std_scaled_output"
        " init_method_std_scaled_attn_q init_method_std_scaled_attn_k init_method_std_scaled_attn_v"
        " init_method_std_scaled_ffn_w1 init_method_std_scaled_ffn_w2 init_method_std_scaled_ffn_w3"
        " init_weight_attn_norm init_weight_ffn_norm init_weight_output_norm",
        _refuse("only Megatron's legacy models read it, which no longer exist; remove the key"),
    ),
    "wandb_log_model": _refuse(
        "remove the key; instead of histograms, W&B gets the norm of the gradients, and that of the weights "
        "with log_params_norm: true"
    ),
    "wandb_log_model_interval": _drop("wandb_log_model is no longer supported"),
    "save_param_index_maps_only": _refuse("remove the key: checkpoints contain their own index (torch_dist)"),
    "save_when_num_microbatches_change": _refuse("use save_interval instead"),
    **_each(
        "auto_skip_spiky_loss spiky_loss_threshold",
        _refuse(
            "use on_bad_loss: skip, and bad_loss_factor: a loss above this factor times the median is bad"
        ),
    ),
    "no_shared_fs": _refuse("set experiment.runner.no_shared_fs instead"),
    **_each(
        "extra_valid_interval extra_valid_data_path",
        _refuse(
            "rename data_path to train_data_path and remove split; list the prefixes of all validation sets, "
            "without token counts, in valid_data_path and their tags in validation_set_names; set "
            "multiple_validation_sets: true and full_validation: true; for intervals of their own, use "
            "validation_set_intervals (one per set, multiples of eval_interval)"
        ),
    ),
    "device_type": _refuse("set experiment.runner.platform, or `type=` in the hostfile, instead"),
    "auto_tune": _drop("`action=auto_tune` itself sets what its trials need"),
    "eval_metric": _refuse("evaluate the checkpoints in a job of its own (task.type: evaluate)"),
    "dataset_config": _drop("v0.6.0 did not read it; data_path names the data"),
    "prompt_path": _refuse(
        "remove the key: the question about a picture is part of its sample (tools/datasets/llava.py)"
    ),
    "allow_missing_vision_projection_checkpoint": _drop(
        "tools/checkpoint/convert.py draws a projector for the checkpoint that a training starts from"
    ),
    "use_te": _drop("transformer_impl chooses the layers"),
    "dataloader_save": _drop("the state of the loader is part of each checkpoint"),
    "interleaved_dataset": _drop("the samples themselves show their form"),
    "use_pos_skipping": _refuse("remove the key: the positions of tokens are never skipped"),
    "pos_skipping_range": _drop("it is used only with use_pos_skipping"),
    "standalone_embedding_stage": _refuse(
        "give the embedding a stage of its own in pipeline_model_parallel_layout, such as 'E|tt|tt|L'"
    ),
    **_each(
        "encoder_tensor_model_parallel_size encoder_pipeline_model_parallel_size"
        " pipeline_model_parallel_split_rank",
        _refuse("models of an encoder and a decoder no longer exist in the engine; remove the key"),
    ),
    "retriever_seq_length": _refuse(_NO_RETRO, off=256),
    **_each(
        "retro_project_dir retro_add_retriever retro_cyclic_train_iters retro_no_verify_neighbor_count",
        _refuse(_NO_RETRO),
    ),
    **_each("retro_encoder_layers retro_num_neighbors retro_num_retrieved_chunks", _refuse(_NO_RETRO, off=2)),
    **_each("retro_encoder_hidden_dropout retro_encoder_attention_dropout", _refuse(_NO_RETRO, off=0.1)),
    "retro_attention_gate": _refuse(_NO_RETRO, off=1),
    **_each(
        "hybrid_attention_ratio hybrid_mlp_ratio",
        _refuse(
            "remove the key: FlagScale's own training programs did not read it; a program with its own "
            "`forward_step` can use hybrid_layer_pattern"
        ),
    ),
    "moe_extended_tp": _refuse(
        "set expert_tensor_parallel_size to tensor_model_parallel_size x expert_model_parallel_size, and "
        "expert_model_parallel_size to 1"
    ),
    "renormalize_blend_weights": _refuse(
        "remove the key; mid_level_dataset_surplus sets how many extra samples each data set prepares"
    ),
    "s3_cache_path": _rename("object_storage_cache_path"),
    "tiktoken_special_tokens": _refuse(
        "use tokenizer_special_tokens, which must also list <mask>, <pad>, <cls> and <sep>"
    ),
    **_each(
        "process_meshes hetero_pipeline_stages hetero_mode",
        _refuse(
            "v0.6.0 did not read it either; use enable_hetero: true, hetero_process_meshes (tp, cp, ep, dp, "
            "pp of each mesh), hetero_pipeline_layer_split (the layers of each stage) and "
            "hetero_device_types (a list with the type of each mesh, as in the hostfile)"
        ),
    ),
}

WITH_OWN_RULES: Mapping[str, str] = {
    "multiple_of": "with `swiglu`, it becomes the `ffn_hidden_size` that it stands for",
    "hidden_dim_multiplier": "with `multiple_of`, it becomes part of `ffn_hidden_size`",
    "rampup_batch_size": "it becomes a `step_batch_size_schedule` with the same effect",
    "ulysses_sp_parallel_size": "it multiplies `context_parallel_size`, with `cp_comm_type: a2a`, or with "
    "`a2a+p2p` if `context_parallel_size` was above 1",
    "language_model_type": "it becomes the arguments that it stood for; the rules below apply with it",
    "disable_vision_class_token": "it must be `true`: the tower's class token is never passed on",
    "training_dataset_only": "it becomes `eval_iters: 0`",
    "special_tokens_file": "its lines become `tokenizer_special_tokens`",
    "wandb_mode": "it becomes the environment variable `WANDB_MODE`",
    "wandb_api_key": "it becomes the environment variable `WANDB_API_KEY`, which no file or log shows",
}
"""Task keys that are not simply renamed or dropped (see `translate_task`), with what happens to them."""

INFERENCE: Mapping[str, Change] = {
    "llm.vq_model": _drop("the model's folder in the form of transformers (-hf) holds it"),
    "generate.sampling.guidance_scale": _rename("generate.guidance_scale"),
}
"""Keys of the task group `inference` that are now elsewhere."""

EMU3_MODES: Mapping[str, str] = {"G": "image", "U": "understand"}
"""The values of `generate.mode` in v0.6.0, and now."""
EMU3: Mapping[str, Change] = {
    "llm.skip_tokenizer_init": _drop("the model's own tokenizer reads the prompts"),
    "llm.trust_remote_code": _drop("folders in the form of transformers (-hf) contain no code"),
    "generate.sampling.detokenize": _drop("answers are always turned into pictures or text"),
}
"""More keys of files that have one of these modes."""

EXPERIMENT: Mapping[str, Change] = {
    "shell_cmds": _refuse("v0.6.0 did not read it; use experiment.cmds.before_start"),
    "ssh_port": _rename("runner.ssh_port"),
    "auto_tuner.control.interval": _drop("trials are watched twice per second"),
    **_each(
        "auto_tuner.platform.airs_switch auto_tuner.platform",
        _refuse("remove it: nothing is reported to a platform, and experiment.runner names the hosts"),
    ),
    "auto_tuner.args_mapping": _refuse(
        "remove the key, and use the engine's own names of arguments in experiment.auto_tuner.space"
    ),
}

ENTRYPOINTS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            f"flagscale/train/{name}.py"
            for name in ("train_aquila", "train_llama", "train_mixtral", "train_gpt", "hetero/train_llama")
        ),
        "megatron.flagscale.train_gpt",
    ),
    **dict.fromkeys(
        ("flagscale/train/train_llava.py", "flagscale/train/train_llava_onevision.py"),
        "megatron.flagscale.train_llava",
    ),
    **dict.fromkeys(
        ("flagscale/inference/inference_aquila.py", "flagscale/inference/inference_emu3.py"),
        "vllm_flagscale.generate",
    ),
}
