"""From text to what Megatron reads: documents -> tokenizer -> `.bin/.idx`.

Importing these modules loads neither torch nor tokenizers: a call with nothing to do answers at once.
"""
