"""FlagScale's data plane: what runs inside Megatron's processes. Importing it imports no torch."""
