"""Pictures in a GPT model on Megatron's blocks: the vision tower, its projector, and the training of both."""
