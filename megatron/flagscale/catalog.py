"""Print all arguments of the engine and FlagScale as JSON: `python -m megatron.flagscale.catalog`.

The control plane checks users' keys against a committed copy of this output, without importing the engine.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from flagscale.config.catalog import describe_actions, print_catalog

ENGINE = "megatron-core"


def build_catalog() -> dict[str, Any]:
    """Return `{"engine", "version", "arguments"}`, the arguments as `describe_actions` describes them."""
    from megatron.flagscale.args import engine_parser

    return {
        "engine": ENGINE,
        "version": importlib.metadata.version(ENGINE),
        "arguments": describe_actions(engine_parser()._actions),
    }


if __name__ == "__main__":
    print_catalog(build_catalog)
