"""Turn conversations about pictures into the shards that Megatron-Energon reads."""
