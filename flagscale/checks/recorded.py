"""The keys that are stored with a checkpoint, by what another value means for a run that loads it.

Keys that are not in these lists are free: parallel degrees, logging, saving, speed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flagscale.checks import gemma, pictures
from flagscale.checks.blend import NAMES
from flagscale.checks.latent import ONLY_WITH_YARN
from flagscale.checks.loading import READING
from flagscale.checks.lora import DROPOUT, LORA
from flagscale.checks.mask_files import NO_PACKING, SEPARATE
from flagscale.checks.norms import NORMS
from flagscale.checks.schedule import PARTS
from flagscale.checks.stablelm2 import KEYS

SHAPE = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels"),
    *("group_query_attention", "num_query_groups", "multi_latent_attention", "q_lora_rank", "kv_lora_rank"),
    *("qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim", "qk_layernorm", "normalization", "swiglu"),
    *("add_bias_linear", "add_qkv_bias", "position_embedding_type", "untie_embeddings_and_output_weights"),
    *("num_experts", "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size", "moe_layer_freq"),
    *("moe_latent_size", "mtp_use_repeated_layer", "attention_output_gate", "softmax_type"),
    *("vision_model_type", "vision_image_size", "vision_patch_size", "vision_num_layers"),
    *("vision_hidden_size", "vision_ffn_hidden_size", "vision_num_attention_heads", "mm_patch_merge_type"),
    *NORMS,
)
"""Another value gives weights of another shape or name: refused, whatever else is set."""
FUNCTION = (
    "moe_router_group_best",
    *("squared_relu", "quick_geglu", "rotary_base", "rotary_percent", "rotary_interleaved"),
    *("use_rope_scaling", "rope_scaling_factor", "rotary_seq_len_interpolation_factor", "layernorm_epsilon"),
    *("rope_type", *ONLY_WITH_YARN, "layernorm_zero_centered_gamma", "window_size"),
    *("moe_router_topk", "moe_router_score_function", "moe_router_pre_softmax", "moe_router_num_groups"),
    *("moe_router_group_topk", "moe_router_topk_scaling_factor", "moe_apply_probs_on_input", "no_rope_freq"),
    *("window_attn_skip_freq", "activation_func_clamp_value", "glu_linear_offset"),
    "yarn_correction_range_round_to_int",
    *("image_aspect_ratio", "image_grid_pinpoints"),
    *gemma.SETTINGS,
)
"""Another value makes the same weights compute something else: refused, unless `finetune` starts a new
training with these weights."""
PARTS_OF_MODEL = ("mtp_num_layers", "moe_router_enable_expert_bias", "moe_shared_expert_gate")
"""A larger value needs weights that the checkpoint does not have: refused as for `SHAPE`. A smaller one
leaves some of its weights out: refused as for `FUNCTION`."""
FROZEN = pictures.PARTS
"""To train what was frozen needs states of the optimizer that the checkpoint does not have: refused, unless
they are not loaded. To freeze more is allowed, with a notice."""
DISTRIBUTED = "use_distributed_optimizer"
OPTIMIZER = ("optimizer", DISTRIBUTED, *dict.fromkeys(name for names in PARTS.values() for name in names))
"""Refused if the optimizer's state or its schedule would change, unless neither is loaded; a switch says
which of two schedules counts."""
NOTICE = (
    *("seed", "global_batch_size", "seq_length", "split", "step_batch_size_schedule", "attention_dropout"),
    *("hidden_dropout", "clip_grad", "adam_beta1", "adam_beta2", "adam_eps", "bf16", "fp16", "eod_mask_loss"),
    *("reset_attention_mask", "reset_position_ids", "moe_aux_loss_coeff", "moe_router_load_balancing_type"),
    *("moe_z_loss_coeff", "moe_router_bias_update_rate", "moe_router_dtype", "mtp_loss_scaling_factor"),
    *("mtp_detach_heads", "moe_expert_capacity_factor", "moe_pad_expert_input_to_capacity"),
    *("moe_token_drop_policy", "moe_input_jitter_eps", "calculate_per_token_loss"),
    *("lr_wsd_decay_iters", "lr_wsd_decay_samples", "lr_wsd_decay_style", "max_position_embeddings"),
    DROPOUT,
    *("several_images", "video_frames", "image_token", "video_token", "packing_buffer_size"),
    *(NO_PACKING, SEPARATE, "chat_template", *KEYS),
)
"""The run continues and a notice says what changes; so do other data and another tokenizer."""
OVERRIDE, KEEP = "override_opt_param_scheduler", "use_checkpoint_opt_param_scheduler"
WITH_OPTIM = "finetune_with_optim"
"""Starts a new training with the weights and the optimizer's state of a checkpoint."""
STRICTNESS = "dist_ckpt_strictness"
STRICT = ("assume_ok_unexpected", "raise_unexpected", "raise_all")
"""The values of this argument with which a tensor that is not in the checkpoint is an error."""
CONTENT, TOKENIZER = "content", "tokenizer"
"""Names in a record besides arguments: what identifies the data and the tokenizer."""
RECORDED = tuple(
    dict.fromkeys(
        (
            *(*SHAPE, *FUNCTION, *PARTS_OF_MODEL, *FROZEN, *OPTIMIZER, *NOTICE),
            *(*LORA, *NAMES, "mock_data", "tokenizer_type", *READING),
        )
    )
)
"""The arguments (by dest) that are stored with a checkpoint."""


def record(values: Mapping[str, Any], content: str = "", tokenizer: str = "") -> dict[str, Any]:
    """Return what is stored with a checkpoint of a run: plain values of `RECORDED`, data and tokenizer."""
    kept = {name: values[name] for name in RECORDED if name in values}
    return {**plain(kept), CONTENT: content, TOKENIZER: tokenizer}


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: tuples become lists, other objects their text."""
    return json.loads(json.dumps(value, default=str))
