"""A model of another package for vLLM: Llama by another name."""


def register() -> None:
    """Make the model known; vLLM calls this in every process of an engine, maybe more than once."""
    from transformers import AutoConfig, LlamaConfig
    from vllm import ModelRegistry

    class ToyConfig(LlamaConfig):
        """The configuration of the model's folders."""

        model_type = "toy"

    AutoConfig.register("toy", ToyConfig, exist_ok=True)
    ModelRegistry.register_model("ToyForCausalLM", "vllm.model_executor.models.llama:LlamaForCausalLM")
