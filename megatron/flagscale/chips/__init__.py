"""What a chip needs so that Megatron's trainer runs on it unchanged."""
