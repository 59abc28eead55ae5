"""The known families: a table of built-in ones, and entry points `flagscale.families` of other packages."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from flagscale import registry
from megatron.flagscale.convert.families.base import Family

_HERE = __name__.rpartition(".")[0]
BUILT_IN = {
    "llama": f"{_HERE}.llama:LLAMA",
    "llama_biased": f"{_HERE}.llama_biased:LLAMA_BIASED",
    "aquila": f"{_HERE}.aquila:AQUILA",
    "mixtral": f"{_HERE}.mixtral:MIXTRAL",
    "mistral": f"{_HERE}.mistral:MISTRAL",
    "qwen2": f"{_HERE}.qwen2:QWEN2",
    "qwen3": f"{_HERE}.qwen3:QWEN3",
    "qwen2_moe": f"{_HERE}.qwen2_moe:QWEN2_MOE",
    "qwen3_moe": f"{_HERE}.qwen3_moe:QWEN3_MOE",
    "gemma2": f"{_HERE}.gemma2:GEMMA2",
    "gemma3": f"{_HERE}.gemma3:GEMMA3",
    "olmo2": f"{_HERE}.olmo2:OLMO2",
    "gpt_oss": f"{_HERE}.gpt_oss:GPT_OSS",
    "deepseek_v2": f"{_HERE}.deepseek_v2:DEEPSEEK_V2",
    "deepseek_v3": f"{_HERE}.deepseek_v3:DEEPSEEK_V3",
}
"""Name -> "module:attribute", in the order in which families are tried: the first match is used."""


def names() -> list[str]:
    """Return every known name, built-in ones first."""
    return [*BUILT_IN, *sorted(registry.names("families", BUILT_IN).keys() - BUILT_IN.keys())]


@cache
def load(name: str) -> Family:
    """Import and return a family; raises UserError if the name is unknown or its package is broken."""
    found: Family = registry.load("families", name, "", BUILT_IN)
    return found


def families(wanted: str | None = None) -> Iterator[Family]:
    """Return every known family, built-in ones first; broken packages are skipped with a note on stderr.

    Raises:
        UserError: the wanted family is unknown or its package is broken.
    """
    if wanted is not None:
        load(wanted)
    return registry.load_each("families", names(), BUILT_IN)
