"""Aquila: a Llama with another vocabulary. It is written as one, so that everything opens it."""

from __future__ import annotations

from dataclasses import replace

from megatron.flagscale.convert.families.llama import LLAMA

AQUILA = replace(LLAMA, name="aquila")
