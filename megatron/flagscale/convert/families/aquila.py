"""Aquila: a Llama with another vocabulary. It is exported as a Llama, which other software can open."""

from __future__ import annotations

from dataclasses import replace

from megatron.flagscale.convert.families.llama import LLAMA

AQUILA = replace(LLAMA, name="aquila")
