"""FlagScale's data plane: the code inside Megatron's processes. Importing it does not import torch."""
