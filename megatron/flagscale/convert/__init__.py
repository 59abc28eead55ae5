"""Convert checkpoints between Hugging Face folders and Megatron's `torch_dist` format.

    from megatron.flagscale.convert.convert import convert
    convert("outputs/run/checkpoints", "model_hf")

Every source yields, and every target accepts, the same stream of named tensors (`tensors.entries`), so n
formats need n readers and n writers. A family of models is one file of tables (`families`). `model`,
`families`, `hf_config` and `megatron_args` need the standard library only.
"""
