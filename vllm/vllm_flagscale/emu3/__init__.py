"""Emu3 in vLLM: pictures from text and text from pictures, by one language model whose words are picture tokens too."""
