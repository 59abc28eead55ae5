"""Find the keys of a `config.json` that may change what the model computes, but are not read by its family.

A key may have any value if the family reads it or if it is harmless. Every other key must have the value that
stands for a missing one, and so changes nothing: the default of the configuration class, or null if the class
has no such key. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from flagscale.errors import Problem, short
from megatron.flagscale.convert import block_scales, mxfp4
from megatron.flagscale.convert.families.base import Family
from megatron.flagscale.convert.hf_defaults import all_keys, generation_defaults
from megatron.flagscale.convert.hf_rope import ROPE_KEYS
from megatron.flagscale.convert.json_values import same

_READ = ("architectures", "model_type", "dtype", "torch_dtype", "tie_word_embeddings", "transformers_weights")
"""Read in every family."""

_REASONS = (
    # Where the folder comes from. Code that `auto_map` names is another model than the architecture's own.
    "_name_or_path name_or_path _commit_hash _from_model_config transformers_version auto_map",
    "model_name keys_to_ignore_at_inference",
    "unsloth_version unsloth_fixed finetuning_task task_specific_params transformers.js_config",
    # Tokens and lengths: the converter asks the tokenizer and `max_position_embeddings`.
    "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id end_token_id",
    "tokenizer_class prefix max_new_tokens",
    "max_sequence_length max_seq_len model_max_length tokenizer_model_max_length",
    # What a call returns, by which code it is computed, and how weights are drawn.
    "use_cache return_dict output_attentions output_hidden_states torchscript chunk_size_feed_forward",
    "_attn_implementation attn_implementation _attn_implementation_autoset _attn_implementation_internal",
    "_experts_implementation experts_implementation _experts_implementation_internal _flash_attn_2_enabled",
    "use_flash_attn use_flash_attention use_flash_attention_2 gradient_checkpointing pretraining_tp",
    "initializer_range",
    # Heads of classifiers.
    "id2label label2id num_labels problem_type classifier_dropout",
)
_HARMLESS = frozenset(name for names in _REASONS for name in names.split())
"""Change nothing in any family."""

_OFF = (
    "attention_bias mlp_bias bias use_bias qkv_bias use_qkv_bias qk_norm use_qk_norm qk_layernorm",
    "use_sliding_window use_mrope rope_interleaved is_decoder is_encoder_decoder add_cross_attention",
    "tie_encoder_decoder use_bfloat16 tf_legacy_loss",
)
_DROPOUT = "dropout attention_dropout hidden_dropout hidden_dropout_prob attn_pdrop embd_pdrop resid_pdrop"
_NEUTRAL: Mapping[str, Any] = {
    **{name: False for names in _OFF for name in names.split()},
    **dict.fromkeys(_DROPOUT.split(), 0.0),
    "is_llama_config": True,
    "is_causal": True,
    "logit_scale": 1.0,
    "pruned_heads": {},
}
"""Keys of other classes and of older versions, with the value that changes nothing."""

_HINT = "remove it if it changes nothing in this model"
_QUANTIZED = (
    "quantized weights cannot be converted, except fp8 with `weight_block_size` as in DeepSeek-V3: use the "
    "folder with the original ones"
)
_HINTS = {
    "quantization_config": _QUANTIZED,
    "compression_config": _QUANTIZED,
    "dual_chunk_attention_config": "vLLM computes attention in chunks by it, and transformers ignores it: "
    "remove it to convert the model as transformers reads it",
}


def surplus_keys(config: Mapping[str, Any], family: Family, where: str) -> Iterator[Problem]:
    """Yield each key whose value is neither read, nor harmless, nor that of a missing key."""
    read = {
        *_READ,
        *family.keys.values(),
        *family.config,
        *family.checks,
        *(ROPE_KEYS if family.is_rotary else ()),
    }
    read |= {setting.key for setting in family.settings}
    harmless = _HARMLESS | generation_defaults().keys() | {*family.harmless}
    defaults = family.class_defaults
    missing = {**_NEUTRAL, **defaults}
    for key, value in config.items():
        if key == block_scales.KEY and block_scales.block_of(value):
            continue
        if key == block_scales.KEY and mxfp4.is_packed(value) and any(row.stacked for row in family.rows):
            continue
        if key in read or key in harmless or same(value, missing.get(key)):
            continue
        if value is None and key not in defaults:
            continue
        shown = f"`{key}` is {short(value)}"
        if key in missing:
            yield Problem(f"{shown}; only {short(missing[key])} is supported", where)
            continue
        absent = {*read, *missing} - config.keys() if key not in all_keys() else ()
        close = get_close_matches(key, sorted(absent), n=1, cutoff=0.8)
        hint = f"did you mean `{close[0]}`?" if close else _HINTS.get(key, _HINT)
        yield Problem(
            f"{shown}, but models of the family {family.name} are not known to have it", where, hint
        )
