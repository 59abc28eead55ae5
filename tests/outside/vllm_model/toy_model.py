"""A model for vLLM from another package: Llama under another name."""


def register() -> None:
    """Register the model; vLLM calls this in every process of an engine, possibly more than once."""
    from transformers import AutoConfig, LlamaConfig
    from vllm import ModelRegistry

    class ToyConfig(LlamaConfig):
        """The configuration in the model's folder."""

        model_type = "toy"

    AutoConfig.register("toy", ToyConfig, exist_ok=True)
    ModelRegistry.register_model("ToyForCausalLM", "vllm.model_executor.models.llama:LlamaForCausalLM")
