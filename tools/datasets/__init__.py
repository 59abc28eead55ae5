"""Turn text into the data that Megatron reads: documents -> tokenizer -> `.bin/.idx`.

Importing these modules loads neither torch nor tokenizers, so a call that has nothing to do returns at once.
"""
