"""Emu3 in vLLM: one language model that draws pictures from text and answers questions about pictures."""
