"""What FlagScale's own training program does not do: the engine knows it, its batches do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.parallel.finding import Finding

NOT_DONE = (
    "mtp_num_layers",
    "hybrid_layer_pattern",
    "hybrid_context_parallel",
    "dataloader_inter_document_masking",
    "per_dataset_sequences_path",
    "sft",
    "fim_data",
    "perform_rl_step",
)
"""Arguments (by dest) that the program would ignore."""


def program_findings(values: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what the arguments (by dest) ask of the program in vain."""
    for name in NOT_DONE:
        if values.get(name):
            what = "is not done by FlagScale's training program; leave it out, or name your own program"
            yield name, f"`{name}` {what} as experiment.task.entrypoint"
