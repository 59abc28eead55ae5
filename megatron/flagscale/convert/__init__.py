"""Checkpoints from one format to another: Hugging Face folders and Megatron's `torch_dist`.

    from megatron.flagscale.convert.convert import convert
    convert("outputs/run/checkpoints", "model_hf")

Every source gives, and every target takes, one stream of named tensors (`tensors.entries`), so n formats need
n readers and n writers. A family of models is one file of tables (`families`). `model`, `families`,
`hf_config` and `megatron_args` need the standard library only.
"""
