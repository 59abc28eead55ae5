"""Train adapters (LoRA) on Megatron's linear layers, with everything else frozen."""
