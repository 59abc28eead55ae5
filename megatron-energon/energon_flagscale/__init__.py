"""Pictures and text for training: Megatron-Energon's loader with our formats, encoder and resuming."""
