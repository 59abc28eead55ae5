"""What a transformer layer keeps for its backward pass, measured on meta tensors: no memory, no weights."""
