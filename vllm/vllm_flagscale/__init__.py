"""FlagScale's plugin for vLLM (entry point `vllm.general_plugins`): models that vLLM does not know."""


def register() -> None:
    """Register Aquila, which is Llama by another name; vLLM dropped it in 0.24.

    vLLM calls this in every process of an engine, possibly more than once.
    """
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from vllm_flagscale.aquila import AquilaConfig

    AutoConfig.register("aquila", AquilaConfig, exist_ok=True)
    known = ModelRegistry.get_supported_archs()
    for name in ("AquilaForCausalLM", "AquilaModel"):
        if name not in known:
            ModelRegistry.register_model(name, "vllm.model_executor.models.llama:LlamaForCausalLM")
