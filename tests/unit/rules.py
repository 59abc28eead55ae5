"""One example per rule between Megatron's arguments: task keys that break it, and part of its message."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from flagscale.checks.latent import NOT_WITH_MLA, ONLY_WITH_MLA, ONLY_WITH_YARN
from flagscale.checks.megatron import LEAST
from flagscale.config.schema import Commands, Environment, Experiment, Runner, Task
from flagscale.config.source_map import SourceMap
from flagscale.engines.megatron.adapter import MEGATRON, TRAIN
from flagscale.errors import Problem, UserError
from flagscale.values import Host, Job
from tests.unit.conftest import TASK

_DEGREES = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")


@dataclass(frozen=True)
class Example:
    """Changes to `TASK` that break one rule on a platform; `says` is part of its message."""

    changes: dict[str, Any]
    says: str
    platform: str = "nvidia"
    meshes: int = 1
    entrypoint: str = TRAIN

    def __str__(self) -> str:
        return f"{self.platform}: {self.changes}"

    @property
    def ranks(self) -> int:
        return self.meshes * prod(self.changes.get(name, 1) for name in _DEGREES)

    def build(self) -> Job:
        """Return the job; raises UserError with its problems."""
        experiment = Experiment(
            name="demo",
            exp_dir=Path("/nowhere"),
            task=Task(backend="megatron", entrypoint=self.entrypoint),
            runner=Runner(),
            envs=Environment(),
            cmds=Commands(),
            arguments={**TASK, **self.changes},
        )
        return MEGATRON.build(experiment, (Host(0, "localhost", self.ranks, self.platform),), SourceMap())

    def report(self) -> list[Problem]:
        """Return the problems that the launcher reports."""
        try:
            self.build()
        except UserError as error:
            return list(error.problems)
        return []


_MLA = {"multi_latent_attention": True, "position_embedding_type": "rope"}
_ROPE = _MLA | {"rope_type": "rope", "no_rope_fusion": True}

_WITH: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim"), _MLA
    ),
    "num_query_groups": {"group_query_attention": True},
    "moe_ffn_hidden_size": {"num_experts": 4},
    "moe_router_topk": {"num_experts": 4, "moe_ffn_hidden_size": 64},
    **dict.fromkeys(("rotary_scaling_factor", "yarn_original_max_position_embeddings"), _MLA),
    "train_samples": {"train_iters": None},
    "lr_warmup_samples": {"train_iters": None, "train_samples": 64},
}
"""What else an argument needs."""

OF_THE_ENGINE = [
    *(
        Example({name: None}, f"`{name}` is required")
        for name in (
            "num_layers",
            "hidden_size",
            "num_attention_heads",
            "seq_length",
            "max_position_embeddings",
            "lr",
            "tokenizer_type",
        )
    ),
    Example({"train_iters": None}, "`train_iters` or `train_samples` is required"),
    Example({"train_samples": 100}, "give `train_iters` or `train_samples`, not both"),
    Example({"lr_warmup_samples": 10}, "use `lr_warmup_iters`, not `lr_warmup_samples`"),
    Example({"lr_decay_samples": 10}, "use `lr_decay_iters`, not `lr_decay_samples`"),
    Example({"train_iters": None, "train_samples": 64, "lr_warmup_iters": 1}, "use `lr_warmup_samples`"),
    *(
        Example(
            _WITH.get(name, {}) | {name: least - 1}, f"`{name}` must be at least {least}, not {least - 1}"
        )
        for name, least in LEAST.items()
    ),
    Example({"lr": float("nan")}, "`lr` must be a number, not nan"),
    Example({"clip_grad": float("inf")}, "`clip_grad` must be a number, not inf"),
    Example({"seq_length": 128}, "seq_length 128 is larger than max_position_embeddings 64"),
    Example(
        {"lr_warmup_fraction": 0.1, "lr_warmup_iters": 1},
        "give `lr_warmup_fraction` or `lr_warmup_iters`, not both",
    ),
    Example({"lr_warmup_fraction": 1.0}, "at least 0 and less than 1, not 1.0"),
    Example({"lr_warmup_iters": 10}, "the warm-up (10 iters) must be shorter than the schedule (10)"),
    Example(
        {"lr_warmup_iters": 5, "lr_decay_iters": 5},
        "the warm-up (5 iters) must be shorter than the schedule (5)",
    ),
    Example({"min_lr": 0.1}, "min_lr 0.1 is larger than lr 0.001"),
    Example({"lr_warmup_init": 0.1}, "lr_warmup_init 0.1 is larger than lr 0.001"),
    Example({"lr_decay_style": "WSD"}, "lr_decay_style WSD needs `lr_wsd_decay_iters`"),
    Example(
        {"start_weight_decay": 0.1},
        "`start_weight_decay` needs `weight_decay_incr_style: linear` or `cosine`",
    ),
    Example(
        {"weight_decay_incr_style": "cosine", "start_weight_decay": 0.1},
        "weight_decay_incr_style cosine needs `end_weight_decay`",
    ),
    Example({"override_opt_param_scheduler": True, "use_checkpoint_opt_param_scheduler": True}, "not both"),
    Example(
        {"group_query_attention": True, "multi_latent_attention": True, "position_embedding_type": "rope"},
        "`multi_latent_attention`, not both",
    ),
    Example({"moe_ffn_hidden_size": 8}, "`moe_ffn_hidden_size` needs `num_experts`"),
    Example(
        {
            "num_experts": 4,
            "moe_ffn_hidden_size": 64,
            "tensor_model_parallel_size": 2,
            "add_bias_linear": False,
        },
        "experts with tensor_model_parallel_size > 1 need `sequence_parallel: true`",
    ),
    Example(
        {
            "num_experts": 4,
            "moe_ffn_hidden_size": 64,
            "tensor_model_parallel_size": 2,
            "sequence_parallel": True,
        },
        "experts with biases need expert_tensor_parallel_size 1",
    ),
    Example(
        {
            "num_experts": 4,
            "moe_router_load_balancing_type": ["aux_loss", "seq_aux_loss"],
            "moe_aux_loss_coeff": 0.1,
        },
        "give one value for each of the 2 values of moe_router_load_balancing_type",
    ),
    Example(
        {"num_experts": 4, "moe_aux_loss_coeff": [0.1, 0.2]},
        "give one value for the only value of moe_router_load_balancing_type",
    ),
    *(
        Example({name: value}, f"`{name}` needs `num_experts`")
        for name, value in (
            ("moe_latent_size", 16),
            ("moe_pad_expert_input_to_capacity", True),
            ("moe_router_enable_expert_bias", True),
            ("moe_router_group_topk", 2),
        )
    ),
    Example(
        {"num_experts": 4, "moe_token_dispatcher_type": "flex"}, "needs ranks that share the experts: use"
    ),
    Example(
        {"num_experts": 4, "moe_pad_expert_input_to_capacity": True}, "needs `moe_expert_capacity_factor`"
    ),
    Example(
        {"num_experts": 4, "moe_expert_capacity_factor": 1.0, "moe_router_load_balancing_type": "sinkhorn"},
        "`moe_expert_capacity_factor` is not supported with `moe_router_load_balancing_type: sinkhorn`",
    ),
    *(
        Example(
            {"num_experts": 4, "moe_aux_loss_coeff": 0.1, "moe_router_load_balancing_type": kind},
            f"{kind}` has no auxiliary loss; remove `moe_aux_loss_coeff`",
        )
        for kind in ("sinkhorn", "quantile_balancing")
    ),
    Example(
        {
            "num_experts": 4,
            "moe_router_load_balancing_type": "quantile_balancing",
            "moe_router_num_groups": 2,
            "moe_router_group_topk": 1,
        },
        "`moe_router_num_groups` is not supported with `moe_router_load_balancing_type: quantile_balancing`",
    ),
    Example({"num_experts": 4, "moe_layer_freq": [0, 1]}, "has 2 values, but num_layers is 4"),
    Example({"num_experts": 4, "moe_layer_freq": "[0]*2+[1]*3"}, "has 5 values, but num_layers is 4"),
    Example({"num_experts": 4, "moe_layer_freq": "2*[0]+[1]*3"}, "has 5 values, but num_layers is 4"),
    *(
        Example({"num_experts": 4, name: True}, f"`{name}` needs `fp8_format` or `fp4_format`")
        for name in ("moe_router_padding_for_quantization", "moe_router_padding_for_fp8")
    ),
    *(
        Example({"num_experts": 4, "moe_layer_freq": given}, "must be a number of at least 1, or a list of 0")
        for given in ("0", "-1", "[0]*2+[1]*", "[0,1,1,2]", "[0,1,1,a]", "[0]+1", "half")
    ),
    Example({"num_experts": 4, "moe_layer_freq": "[0, 1, 1, 1]"}, "as text, the list has no spaces"),
    Example(
        {
            "num_experts": 4,
            "moe_shared_expert_intermediate_size": 64,
            "moe_shared_expert_overlap": True,
        },
        "`moe_shared_expert_overlap` needs `moe_token_dispatcher_type: alltoall`, not allgather",
    ),
    Example(
        {"num_experts": 4, "moe_router_enable_expert_bias": True},
        "needs `moe_router_score_function: sigmoid`",
    ),
    Example({"num_experts": 4, "moe_router_topk": 1}, "needs `moe_router_pre_softmax: true`"),
    Example({"num_experts": 4, "moe_router_group_topk": 2}, "needs `moe_router_num_groups`"),
    Example(
        {"num_experts": 4, "moe_router_group_topk": 2, "moe_router_num_groups": 3},
        "moe_router_num_groups 3 does not divide num_experts 4",
    ),
    Example(
        {"num_experts": 8, "moe_router_group_topk": 4, "moe_router_num_groups": 2, "moe_router_topk": 4},
        "moe_router_group_topk 4 is larger than moe_router_num_groups 2",
    ),
    Example(
        {"mtp_num_layers": 1}, "not supported with `position_embedding_type: learned_absolute`; use rope"
    ),
    Example(
        {
            "mtp_num_layers": 1,
            "position_embedding_type": "rope",
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 2,
        },
        "needs `recompute_num_layers: 1`, not 2",
    ),
    Example({"fp16": True, "bf16": True}, "give `fp16` or `bf16`, not both"),
    Example({"fp16_lm_cross_entropy": True}, "`fp16_lm_cross_entropy` needs `fp16: true`"),
    Example({"fp32_residual_connection": True}, "`fp32_residual_connection` needs `fp16` or `bf16`"),
    Example(
        {"cross_entropy_loss_fusion": True, "cross_entropy_fusion_impl": "te"}, "is rejected by the engine"
    ),
    Example({"recompute_granularity": "full", "recompute_num_layers": 1}, "needs `recompute_method`"),
    Example({"recompute_modules": ["mlp", "mla_upproj"]}, "no such module: mla_upproj; did you mean"),
    Example(
        {
            "num_experts": 4,
            "moe_shared_expert_intermediate_size": 64,
            "moe_shared_expert_overlap": True,
            "moe_token_dispatcher_type": "alltoall",
            "recompute_modules": ["shared_experts"],
        },
        "cannot be combined with `moe_shared_expert_overlap`",
    ),
    Example(
        {
            "transformer_impl": "torch",
            "add_bias_linear": True,
            "recompute_granularity": "selective",
            "recompute_modules": ["mlp"],
        },
        "`recompute_modules: mlp` exhausts the memory if MLPs have biases; add `disable_bias_linear: true`",
    ),
    Example(
        {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 0},
        "`recompute_num_layers` must be at least 1, not 0",
    ),
    Example({"recompute_granularity": "full", "recompute_method": "block"}, "needs `recompute_num_layers`"),
    Example(
        {"recompute_granularity": "selective", "recompute_num_layers": 1},
        "needs `recompute_granularity: full`",
    ),
    Example(
        {"recompute_activations": True, "recompute_method": "block"},
        "needs `recompute_granularity: full`",
    ),
    Example(
        {"distribute_saved_activations": True},
        "needs tensor_model_parallel_size > 1 and recompute_granularity: full",
    ),
    Example(
        {
            "distribute_saved_activations": True,
            "tensor_model_parallel_size": 2,
            "sequence_parallel": True,
            "recompute_granularity": "full",
            "recompute_method": "block",
            "recompute_num_layers": 1,
        },
        "cannot be combined with `sequence_parallel`",
    ),
    Example(
        {"overlap_param_gather": True, "overlap_grad_reduce": True}, "needs `use_distributed_optimizer: true`"
    ),
    Example(
        {"overlap_param_gather": True, "use_distributed_optimizer": True}, "needs `overlap_grad_reduce: true`"
    ),
    Example({"tp_comm_overlap": True}, "`tp_comm_overlap` needs `sequence_parallel: true`"),
    Example({"save_interval": None}, "`save_interval` is required"),
    Example({"save_retain_interval": 7}, "save_retain_interval 7 must be a multiple of save_interval 5"),
    Example({"ckpt_format": "torch_dcp"}, "`ckpt_format: torch_dcp` needs `use_torch_fsdp2: true`"),
    Example({"ckpt_format": "fsdp_dtensor"}, "`ckpt_format: fsdp_dtensor` needs `use_megatron_fsdp: true`"),
    Example({"fp8_format": "hybrid", "fp4_format": "e2m1"}, "give `fp8_format` or `fp4_format`, not both"),
    Example({"micro_batch_size": 3}, "global_batch_size 16 must be a multiple of 3"),
]
"""Rules that the engine enforces in the worker, in its own words."""

_EXPERTS = {"num_experts": 4, "moe_ffn_hidden_size": 64}
_GROUPS = {
    **_EXPERTS,
    "moe_router_num_groups": 2,
    "moe_router_group_topk": 1,
    "moe_router_topk": 2,
    "moe_router_group_best": 1,
}
_CUT = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
_SIZES = "hierarchical_context_parallel_sizes"
_TWO_GROUPS = {"tensor_model_parallel_size": 2, "group_query_attention": True, "num_query_groups": 2}
_LOCAL, _TORCH = {"transformer_impl": "local"}, {"transformer_impl": "torch"}
_POST, _BOTH = {"norm_position": "post"}, {"norm_position": "both"}
_CALM, _WINDOW = {"attention_dropout": 0}, {"window_size": [9, 0]}
_ROPE = {"position_embedding_type": "rope"}
_HEADS = {"mtp_num_layers": 1, **_ROPE}
_ACROSS = {"qk_layernorm_across_heads": True, "normalization": "RMSNorm"}
_OLD = {"ckpt_format": "torch"}
_BACK = {"on_bad_loss": "rollback", "save": "kept", "load": "kept"}
_BPE = {"tokenizer_type": "GPT2BPETokenizer"}
_ONE = str(Path(__file__).parent / "data" / "one_token.json")
_TRACED = {"profile": True, "use_pytorch_profiler": True, "profile_step_start": 2, "profile_step_end": 4}
_PRETRAINED = str(Path(__file__).parent / "data" / "pretrained")
_OF_ONE = {"vocab_file": _ONE, "merge_file": _ONE}
_HF = {"tokenizer_type": "HuggingFaceTokenizer"}

_LM2 = {
    "lr_decay_style": "stablelm2-scheduler",
    "lr_decay_stablelm2_beta": 1.0,
    "lr_decay_stablelm2_rsqrt_samples": 8,
}

_SIGMOID = {
    "num_experts": 4,
    "moe_router_score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
}
_GROUPED = {
    "num_experts": 8,
    "moe_router_num_groups": 4,
    "moe_router_group_topk": 2,
    "moe_router_pre_softmax": True,
}

_IGNORED = {
    "hybrid_layer_pattern": "M-M-",
    "hybrid_override_pattern": "M-M-",
    "mtp_hybrid_override_pattern": "M",
    "hybrid_context_parallel": True,
    "overlap_moe_expert_parallel_comm": True,
    "dataloader_inter_document_masking": True,
    "per_dataset_sequences_path": "sequences.json",
    "fim_data": True,
    "perform_rl_step": True,
}

_GIVEN: dict[str, Any] = {
    "rotary_seq_len_interpolation_factor": 2,
    "no_rope_freq": 2,
    "cache_mla_latents": True,
    "mla_down_proj_fusion": True,
}

_SINKS: dict[str, Any] = {"softmax_type": "learnable", "attention_dropout": 0.0}
_FOR_OTHER_LAYERS = {"mla": _MLA, "moe": _EXPERTS}
_OTHER_LAYERS: dict[str, Any] = {
    "mla_down_proj_fusion": True,
    "moe_latent_size": 16,
    "delay_wgrad_compute": True,
    "qk_clip": True,
    "log_max_attention_logit": True,
    "heterogeneous_layers_config_path": "layers.json",
    "experimental_attention_variant": "dsa",
    "fp8_format": "hybrid",
    "fp4_format": "e2m1",
    "attention_backend": "flash",
}

SHARED = [
    *(
        Example({name: value}, f"`{name}` is not supported by FlagScale's forward step")
        for name, value in _IGNORED.items()
    ),
    Example({"sft": True}, "train with `experiment.task.entrypoint: megatron.flagscale.train_gpt_sft`"),
    Example(
        {"num_query_groups": 2},
        "needs `group_query_attention: true`; without it, every head is a group of its own: remove",
    ),
    Example({"moe_router_group_best": 1}, "has no effect without `num_experts`"),
    Example(_EXPERTS | {"moe_router_group_best": 1}, "has no effect without `moe_router_num_groups`"),
    Example({**_GROUPS, "moe_router_fusion": True}, "is ignored with `moe_router_fusion`"),
    *(
        Example({**_GROUPS, "moe_router_group_best": best}, "must be from 1 to 2, the experts of a group")
        for best in (-1, 0, 3)
    ),
    Example({**_GROUPS, "moe_router_group_best": 3}, "must be from 1 to 2, the experts of a group"),
    Example({"lora_alpha": 8.0}, "`lora_alpha` has no effect without `lora_rank`"),
    Example({**_TORCH, "lora_rank": 4}, "`lora_rank` needs `pretrained_checkpoint`"),
    Example({"apply_residual_connection_post_layernorm": True}, "has no effect, because no layer"),
    # Traces, and MLflow.
    *(
        Example({name: value}, f"`{name}` has no effect without `profile: true`")
        for name, value in {
            "use_pytorch_profiler": True,
            "profile_ranks": [0],
            "profile_step_start": 3,
            "profile_step_end": 20,
            "record_memory_history": True,
            "pytorch_profiler_collect_shapes": True,
        }.items()
    ),
    Example(
        {"profile": True, "record_memory_history": True}, "has no effect without `use_pytorch_profiler: true`"
    ),
    Example({"profile": True}, "`profile` needs `use_pytorch_profiler: true` here", "cpu"),
    *(
        Example(_TRACED | change, says)
        for change, says in (
            ({"record_shapes": True}, "use `pytorch_profiler_collect_shapes`"),
            ({"nvtx_ranges": True}, "is for `nsys` and has no effect with `use_pytorch_profiler`; remove it"),
            ({"memory_snapshot_path": "a.pickle"}, "`memory_snapshot_path` has no effect"),
            ({"profile_step_start": 0}, "`profile_step_start` must be at least 1"),
            ({"profile_step_end": 2}, "`profile_step_end` 2 must be larger than `profile_step_start` 2"),
            ({"profile_step_start": 11, "profile_step_end": 12}, "is after the last iteration, 10"),
        )
    ),
    *(
        Example({name: "x"}, f"`{name}` has no effect without `mlflow_tracking_uri`")
        for name in ("mlflow_experiment", "mlflow_run_name", "mlflow_run_file")
    ),
    Example({"mlflow_tracking_uri": "http://me:secret@host"}, "contains a user or a password, but arguments"),
    Example({"mlflow_tracking_uri": "https:///path"}, "is no address of a server"),
    Example({"mlflow_tracking_uri": "http://host:99999"}, "is no address of a server"),
    Example({"mlflow_tracking_uri": "file:///runs"}, "is a folder, to which MLflow no longer writes"),
    # Which checkpoints are kept.
    Example({"keep_last": 0}, "`keep_last` must be at least 1, not 0"),
    Example({"keep_last": 2, "keep_every": -5}, "`keep_every` must be at least 1, not -5"),
    Example({"keep_every": 5}, "`keep_every` needs `keep_last`"),
    Example({"keep_last": 2, "keep_every": 7}, "keep_every 7 must be a multiple of save_interval 5"),
    Example({"keep_last": 2, "save": None}, "`keep_last` has no effect without `save`"),
    Example({"keep_last": 2, "save": _PRETRAINED, "pretrained_checkpoint": _PRETRAINED}, "the same folder"),
    Example({"keep_last": 2, "save_retain_interval": 10}, "or `save_retain_interval`, not both"),
    Example(
        {"keep_last": 2, "ckpt_format": "torch_dcp", "use_torch_fsdp2": True},
        "`keep_last` cannot be combined with `ckpt_format: torch_dcp`",
    ),
    Example({"cross_entropy_loss_fusion": True}, "cannot be combined with an fp32 model"),
    # Multi-latent attention.
    *(
        Example(
            _MLA | {name: _GIVEN.get(name, True)}, f"`{name}` is not supported with `multi_latent_attention`"
        )
        for name in NOT_WITH_MLA
    ),
    *(
        Example({name: _GIVEN.get(name, 8)}, f"`{name}` has no effect without `multi_latent_attention: true`")
        for name in ONLY_WITH_MLA
    ),
    *(
        Example(given | {name: 8}, f"`{name}` has no effect without `rope_type: yarn`")
        for name, given in zip(ONLY_WITH_YARN, itertools.cycle(({}, _ROPE)), strict=False)
    ),
    Example(
        {"yarn_correction_range_round_to_int": False}, "has no effect without `position_embedding_type: yarn`"
    ),
    Example({"rope_type": "yarn"}, "use `position_embedding_type: yarn`"),
    Example(_MLA | {"rope_type": "rope"}, "set `no_rope_fusion: true`"),
    Example({"recompute_modules": ["mla_up_proj"]}, "needs `multi_latent_attention: true`"),
    Example({"multi_latent_attention": True}, "set `position_embedding_type: rope`"),
    Example(_MLA | _LOCAL, "is not supported with `transformer_impl: local`"),
    Example(_MLA | {"rotary_percent": 0.5}, "`rotary_percent` has no effect on yarn"),
    Example(_MLA | {"yarn_correction_range_round_to_int": False}, "which always rounds"),
    Example(_MLA | {"qk_pos_emb_head_dim": 7}, "must be even"),
    *(
        Example(_MLA | betas, "and both than 0")
        for betas in ({"yarn_beta_fast": 0}, {"yarn_beta_slow": 0}, {"yarn_beta_slow": 40.0})
    ),
    # Routers.
    *(
        Example({"num_experts": 4, name: True}, "without `moe_shared_expert_intermediate_size`")
        for name in ("moe_shared_expert_gate", "moe_shared_expert_overlap")
    ),
    Example(
        _SIGMOID | {"moe_router_load_balancing_type": "sinkhorn"},
        "has no effect with `moe_router_load_balancing_type: sinkhorn`",
    ),
    Example(
        {
            "num_experts": 4,
            "moe_router_load_balancing_type": "sinkhorn",
            "moe_router_topk_scaling_factor": 2.5,
        },
        "`moe_router_topk_scaling_factor` has no effect with `moe_router_load_balancing_type: sinkhorn`",
    ),
    Example({"num_experts": 4, "moe_router_num_groups": 2}, "without `moe_router_group_topk`"),
    Example(_GROUPED | {"moe_router_topk": 1}, "moe_router_group_topk 2 is larger than moe_router_topk 1"),
    Example(_GROUPED | {"moe_router_topk": 5}, "2 groups of 2 experts have fewer than moe_router_topk 5"),
    # The schedule of v0.6.0.
    *(
        Example(_LM2 | {f"lr_decay_stablelm2_{name}": -1}, "must be at least 0, not -1")
        for name in (
            *("cosine_samples", "cosine_period_samples", "rsqrt_samples", "decay_samples", "alpha", "beta"),
        )
    ),
    Example(_LM2 | {"lr_decay_stablelm2_cosine_samples": 8}, "needs `lr_decay_stablelm2_cosine_max_lr`"),
    Example(_LM2 | {"lr_decay_stablelm2_beta": 0.0}, "1 / sqrt(0) at the first step: give a warm-up"),
    Example(
        _LM2 | {"lr_decay_stablelm2_rsqrt_samples": 0},
        "the linear decay of `stablelm2-scheduler` begins where the inverse square root ends: give",
    ),
    Example(_LM2 | {"decoupled_lr": 0.1}, "`decoupled_lr` is not supported with `lr_decay_style: stablelm2"),
    Example(
        _LM2 | {"decoupled_min_lr": 0.1},
        "`decoupled_min_lr` is not supported with `lr_decay_style: stablelm2",
    ),
    *(
        Example(
            {"finetune_with_optim": True, name: True, "load": None}, f"give `finetune_with_optim` or `{name}`"
        )
        for name in ("finetune", "no_load_optim", "skip_train")
    ),
    Example(
        {"finetune_with_optim": True, "moe_use_upcycling": True, "load": None},
        "give `finetune_with_optim` or `moe_use_up",
    ),
    # Steering: skipped data, bad losses, slow ranks.
    Example({"skip_samples_range": [20, 10]}, "`skip_samples_range`: [20, 10] is not a range; write [first"),
    Example({"skip_iters_range": "10-20"}, "`skip_iters_range`: 10-20 is not a list of ranges; write [first"),
    Example({"bad_loss_factor": 1.0}, "`bad_loss_factor` must be more than 1, not 1.0"),
    Example({"slow_rank_factor": 0.5}, "`slow_rank_factor` must be more than 1, or 0 to compare no ranks"),
    Example({"bad_loss_factor": 2.0, "bad_loss_window": 1}, "`bad_loss_window` must be at least 2, not 1"),
    Example({"max_rollbacks": 0}, "`max_rollbacks` must be at least 1, not 0"),
    Example({"on_bad_loss": "skip", "fp16": True}, "`on_bad_loss` cannot be combined with `fp16`: the loss"),
    Example({"bad_loss_factor": 2.0, "fp16": True}, "`bad_loss_factor` cannot be combined with `fp16`"),
    Example({"on_bad_loss": "rollback", "save": None}, "`on_bad_loss: rollback` needs `save`"),
    Example({**_BACK, "load": "other"}, "`load` must be the folder of `save`; use `pretrained_checkpoint`"),
    Example({**_BACK, "finetune": True}, "`on_bad_loss: rollback` cannot be combined with `finetune`"),
    # Saving in a format from which the run can resume.
    Example(_OLD | {"use_distributed_optimizer": True}, "cannot resume from `ckpt_format: torch`"),
    Example(_OLD | {"async_save": True}, "`async_save` needs `ckpt_format: torch_dist`"),
    Example(_OLD | {"non_persistent_ckpt_type": "global"}, "`non_persistent_ckpt_type: global` needs"),
    # On CPU.
    Example({"fp8_format": "hybrid"}, "`fp8_format` is not supported on CPU", "cpu"),
    Example({"fp4_format": "e2m1"}, "`fp4_format` is not supported on CPU", "cpu"),
    Example({"tp_comm_overlap": True, **_CUT}, "`tp_comm_overlap` is not supported on CPU", "cpu"),
    Example({"use_nccl_ub": True}, "`use_nccl_ub` is not supported on CPU", "cpu"),
    Example({"distributed_backend": "nccl"}, "`distributed_backend: nccl` is not supported on CPU", "cpu"),
    Example({"transformer_impl": "transformer_engine"}, "use `torch`, or remove the key", "cpu"),
    Example({"async_save": True, "async_strategy": "nvrx"}, "`async_strategy: nvrx` is not", "cpu"),
    Example({"use_torch_fsdp2": True}, "`use_torch_fsdp2` is not supported on CPU", "cpu"),
    Example({"use_megatron_fsdp": True}, "`use_megatron_fsdp` is not supported on CPU", "cpu"),
    Example({"cuda_graph_impl": "local"}, "`cuda_graph_impl: local` is not supported on CPU", "cpu"),
    *(
        Example({name: True}, f"`{name}` needs TransformerEngine, which is not installed", "cpu")
        for name in ("moe_router_fusion", "moe_permute_fusion")
    ),
    Example(
        _EXPERTS | _CUT | {"disable_bias_linear": True, "moe_token_dispatcher_type": "flex"},
        "`moe_token_dispatcher_type: flex` is not supported on CPU; use `alltoall`",
        "cpu",
    ),
    # Megatron's local layers without TransformerEngine.
    Example(_LOCAL | _CUT, "`sequence_parallel` is not supported with", "cpu"),
    Example(_LOCAL | {"context_parallel_size": 2}, "`context_parallel_size` is not supported with"),
    Example(_LOCAL | {"moe_grouped_gemm": True}, "`moe_grouped_gemm` is not supported with", "cpu"),
    Example(
        _LOCAL | {"fp32_residual_connection": True, "bf16": True},
        "`fp32_residual_connection` is not supported with",
        "cpu",
    ),
    # The layers on torch's kernels.
    *(
        Example(
            _TORCH | _FOR_OTHER_LAYERS.get(name.partition("_")[0], {}) | {name: value},
            f"`{name}` is not supported with `transformer_impl: torch`",
        )
        for name, value in _OTHER_LAYERS.items()
    ),
    Example(_LOCAL | _EXPERTS, "experts with biases are not supported with `transformer_impl: local`"),
    Example(_LOCAL | _SINKS, "`softmax_type: learnable` is not supported with `transformer_impl: local`"),
    Example(_TORCH | {"softmax_type": "off-by-one"}, "use `vanilla` or `learnable`"),
    Example(
        _TORCH | _SINKS | {"context_parallel_size": 2}, "is not supported with `softmax_type: learnable`"
    ),
    Example(
        _TORCH | _SINKS | _MLA, "`multi_latent_attention` is not supported with `softmax_type: learnable`"
    ),
    Example(
        _TORCH | _SINKS | {"attn_logit_softcapping": 50.0},
        "`attn_logit_softcapping` is not supported with `softmax_type: learnable`",
    ),
    Example(_TORCH | _SINKS | {"attention_dropout": 0.1}, "with `softmax_type: learnable`; set it to 0"),
    Example(_TORCH | _CUT | {"tp_comm_overlap": True}, "`tp_comm_overlap` is not supported with"),
    *(
        Example(layers | {"context_parallel_size": cp, "cp_comm_type": types, **more}, says)
        for layers, cp, types, more, says in (
            (
                _TORCH,
                2,
                ["allgather"],
                {},
                "no such `cp_comm_type`: allgather; valid: p2p, all_gather, a2a, a2a+p2p",
            ),
            ({}, 1, "ring", {}, "no such `cp_comm_type`: ring; valid"),
            (
                _TORCH,
                2,
                ["a2a", "p2p", "p2p"],
                {},
                "`cp_comm_type` has 3 types for num_layers 4: give one for all",
            ),
            (
                _TORCH,
                8,
                "a2a",
                {},
                "heads of each rank, 4 (num_attention_heads 4 / tensor 1), must be a multiple of 8",
            ),
            (_TORCH, 4, "a2a", {"tensor_model_parallel_size": 2}, "the attention heads of each rank, 2 (num"),
            ({}, 2, "a2a", _TWO_GROUPS, "use `transformer_impl: torch`, p2p, or other degrees"),
            (_TORCH, 4, "a2a+p2p", {}, "two numbers whose product is context_parallel_size 4: how many"),
            ({}, 4, ["a2a+p2p"], {_SIZES: [2, 4]}, "context_parallel_size 4, not 2 x 4: how many"),
            ({}, 4, "a2a+p2p", {_SIZES: [2, 2, 1]}, "context_parallel_size 4, not 2 x 2 x 1"),
            ({}, 4, "a2a+p2p", {_SIZES: [-2, -2]}, "context_parallel_size 4, not -2 x -2"),
            (_TORCH, 8, "a2a+p2p", {_SIZES: [8, 1]}, "must be a multiple of 8 (the first of `hier"),
            ({}, 4, "a2a", {_SIZES: [2, 2]}, "is only read with `cp_comm_type: a2a+p2p`: remove it"),
        )
    ),
    Example(_TORCH | _MLA | _CUT | {"q_lora_rank": 7}, "q_lora_rank 7 must be a multiple of 2"),
    Example(_TORCH | _MLA | _CUT | {"kv_lora_rank": 7}, "kv_lora_rank 7 + qk_pos_emb_head_dim 64 must be"),
    Example(_TORCH | {"moe_grouped_gemm": True}, "`moe_grouped_gemm` with biases is not supported with"),
    Example(_TORCH | {"recompute_modules": ["moe_act"]}, "`recompute_modules: moe_act` is not supported"),
    Example(_TORCH | {"use_cpu_initialization": True}, "add `init_by_rank: true`"),
    Example(_TORCH | {"init_model_with_meta_device": True}, "add `init_by_rank: true`"),
    # Norms that only these layers have.
    Example(_LOCAL | _POST, "`norm_position: post` needs `transformer_impl: torch`, not local"),
    Example(_TORCH | _BOTH | {"spec": ["local"]}, "`norm_position: both` has no effect with `spec`"),
    Example(
        _TORCH | _POST | {"fp32_residual_connection": True, "bf16": True},
        "`norm_position: post` cannot be combined with `fp32_residual_connection`",
    ),
    Example(
        _TORCH | _POST | {"recompute_granularity": "selective", "recompute_modules": ["layernorm"]},
        "`recompute_modules: layernorm` has no effect with `norm_position: post`",
    ),
    # Gemma's layers.
    *(
        Example({**changes, name: value}, says)
        for name, value, changes, says in (
            ("scale_embedding", True, _LOCAL, "`scale_embedding` needs `transformer_impl: torch`, not local"),
            ("query_pre_attn_scalar", 144, _TORCH | {"spec": ["local"]}, "has no effect with `spec`"),
            ("attn_logit_softcapping", -50, _TORCH | _CALM, "must be positive, not -50"),
            ("final_logit_softcapping", 0, _TORCH, "must be positive, not 0"),
            ("query_pre_attn_scalar", 144, _TORCH | _MLA, "is not supported with `multi_latent_attention`"),
            ("scale_embedding", True, _TORCH | {"use_mup": True}, "cannot be combined with `use_mup`"),
            ("final_logit_softcapping", 30, _TORCH | _HEADS, "is not supported with `mtp_num_layers`"),
            ("attn_logit_softcapping", 50, _TORCH, "needs `attention_dropout: 0`, not 0.1"),
            ("glu_activation", "gelu_tanh", _TORCH, "add `swiglu: true`"),
            ("window_rotary_base", 1e4, _TORCH | _ROPE, "has no effect without `window_size`"),
            ("window_rotary_base", 1e4, _TORCH | _WINDOW, "needs `position_embedding_type: rope`, not"),
            (
                *("window_rotary_base", 1e4, _TORCH | _ROPE | _WINDOW | {"rotary_percent": 0.5}),
                "needs `rotary_percent: 1.0`, not 0.5",
            ),
        )
    ),
    Example(_LOCAL | _ACROSS, "`qk_layernorm_across_heads: true` needs `transformer_impl: torch`, not local"),
    Example(_TORCH | _ACROSS | {"spec": ["local"]}, "`qk_layernorm_across_heads: true` has no effect with"),
    *(
        Example(_TORCH | _ACROSS | more | {name: True}, f"cannot be combined with `{name}`")
        for name, more in {
            "qk_layernorm": {},
            "qk_l2_norm": {},
            "multi_latent_attention": _ROPE,
            "attention_output_gate": {},
        }.items()
    ),
    Example(
        _TORCH | _ACROSS | {"normalization": "LayerNorm"}, "needs `normalization: RMSNorm`, not LayerNorm"
    ),
    Example(
        _TORCH
        | _ACROSS
        | {"tensor_model_parallel_size": 2, "group_query_attention": True, "num_query_groups": 1},
        "num_query_groups 1 must be at least tensor_model_parallel_size 2 with `qk_layernorm_across_heads`",
    ),
    # Data and tokenizer.
    Example(
        {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": "~/t"}, "the engine does not expand `~`"
    ),
    Example({"mock_data": False}, "no data: give `data_path`"),
    Example({"data_path": ["nowhere"]}, "give `mock_data` or `data_path`, not both"),
    Example({"mock_data": False, "data_path": ["nowhere"]}, "no such file"),
    Example({"mock_data": False, "data_args_path": "nowhere.txt", "split": "1"}, "nowhere.txt: no such file"),
    Example({"vocab_size": None}, "NullTokenizer needs `vocab_size`"),
    Example(_BPE | {"vocab_file": __file__}, "GPT2BPETokenizer needs `merge_file`"),
    Example(_BPE | {"vocab_file": __file__, "merge_file": __file__}, "cannot be read as JSON"),
    Example(_BPE | _OF_ONE | {"tokenizer_special_tokens": ["<|endoftext|>"]}, "names '<|endoftext|>', which"),
    Example(_BPE | _OF_ONE | {"end_of_document": "</s>"}, "has the token '</s>', which ends a document"),
    Example(_HF, "HuggingFaceTokenizer needs `tokenizer_model`"),
    Example(_HF | {"tokenizer_type": "Llama2Tokenizer", "tokenizer_model": "./"}, "./ is a folder: Llama2"),
    Example(_HF | {"tokenizer_model": "./nowhere"}, "./nowhere: no such tokenizer"),
    Example(_HF | {"tokenizer_model": str(Path(__file__).parent)}, "has no tokenizer.json"),
    # Validation sets.
    Example({"validation_set_names": ["a"]}, "`validation_set_names` needs `multiple_validation_sets: true`"),
    Example({"validation_set_intervals": [9]}, "`validation_set_intervals` needs `multiple_validation_sets"),
    Example({"multiple_validation_sets": True}, "needs `valid_data_path`"),
]
"""Rules that the worker enforces as well, in the same words."""
