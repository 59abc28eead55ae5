"""Aquila: a Llama with another vocabulary, in the form in which BAAI publishes it.

A checkpoint is exported as a Llama, which all software opens, unless this family is requested. BAAI's folders
name `AquilaForCausalLM` or, in the first releases, `AquilaModel`.
"""

from __future__ import annotations

from dataclasses import replace

from megatron.flagscale.convert.families.llama import LLAMA

AQUILA = replace(
    LLAMA,
    name="aquila",
    architecture="AquilaForCausalLM",
    model_type="aquila",
    other_forms={"AquilaModel": "aquila", LLAMA.architecture: LLAMA.model_type},
    # The configuration classes of BAAI's releases differ in the default of rms_norm_eps.
    defaults={**LLAMA.class_defaults, "vocab_size": 100008, "rms_norm_eps": None},
    notice="written in Aquila's published form: vLLM opens it with FlagScale's plugin, and transformers only "
    "with BAAI's code, which is never copied (add configuration_aquila.py, modeling_aquila.py and `auto_map` "
    "from BAAI's folder); all software opens the form of Llama (--model llama)",
)
