"""The rules that the worker enforces too, with the facts of its own machine; the launcher checks them first.

The engine itself does not have these rules: they cover arguments that it accepts and then ignores or computes
wrongly, features that a machine lacks, and broken inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flagscale.checks.context import context_violations
from flagscale.checks.data import data_violations
from flagscale.checks.gemma import gemma_violations
from flagscale.checks.latent import latent_violations
from flagscale.checks.layers import (
    biased_expert_violations,
    cpu_violations,
    local_violations,
    sink_violations,
    torch_violations,
)
from flagscale.checks.lora import lora_violations
from flagscale.checks.mask_files import SEPARATE
from flagscale.checks.megatron import program_violations, silent_violations
from flagscale.checks.norms import norm_violations
from flagscale.checks.pictures import has_pictures, picture_violations
from flagscale.checks.pretrained import pretrained_violations
from flagscale.checks.saving import resuming_violations, retention_violations
from flagscale.checks.sft import is_instruction_tuning, sft_violations
from flagscale.checks.stablelm2 import stablelm2_violations
from flagscale.checks.steering import steering_violations
from flagscale.checks.tracing import tracing_violations
from flagscale.checks.tracking import tracking_violations
from flagscale.checks.validation import validation_violations
from flagscale.errors import Violation

MODEL_CONFIG, DATASETS, FORWARD_STEP = PARTS = ("model_config", "datasets", "forward_step")
"""The parts that a training program can have itself, as `megatron.flagscale.program.run` calls them.

The launcher reads them from the call in the program's file, the worker from the call itself.
"""


@dataclass(frozen=True)
class Capabilities:
    """The facts about the machine of a job's ranks that the rules need."""

    has_chip: bool
    """Whether the ranks compute on chips rather than on the host's CPU."""
    has_fused_layers: bool
    """Whether TransformerEngine (or Apex) is installed and usable."""
    backend: str
    """The collective backend of ranks on CPU, the only one supported there; not used on chips."""


def cpu_defaults(machine: Capabilities) -> dict[str, str]:
    """Return the defaults (by dest) of a worker on CPU that differ from the engine's."""
    return {
        "distributed_backend": machine.backend,
        "transformer_impl": "torch",
        "async_strategy": "mcore",
    }


def with_defaults(values: Mapping[str, Any], given: Collection[str], machine: Capabilities) -> dict[str, Any]:
    """Return the arguments (by dest) with a worker's own defaults for those that the user has not `given`."""
    own = {} if machine.has_chip else cpu_defaults(machine)
    return {**values, **{name: value for name, value in own.items() if name not in given}}


def worker_violations(
    variants: Sequence[Mapping[str, Any]],
    machine: Capabilities,
    own_parts: Collection[str] = (),
) -> Iterator[Violation]:
    """Yield each rule that a job's arguments (by dest) break on a machine, once.

    Args:
        variants: the arguments as the ranks of each mesh have them; one variant without meshes.
        machine: where the ranks run.
        own_parts: which of `PARTS` the training program has itself; `train_gpt` has none.
    """
    found: dict[Violation, None] = {}
    if is_instruction_tuning(variants[0]):
        own_parts = ()  # it has such parts, which read the same arguments
    for values in variants:
        if is_instruction_tuning(values):
            found |= dict.fromkeys(sft_violations(values))
        if DATASETS not in own_parts:
            found |= dict.fromkeys(validation_violations(values))
        else:
            found |= dict.fromkeys(_own_data_violations(values))
        if FORWARD_STEP not in own_parts:
            found |= dict.fromkeys(program_violations(values))
        if has_pictures(values):
            found |= dict.fromkeys(picture_violations(values))
        found |= dict.fromkeys(argument_violations(values, machine))
    found |= dict.fromkeys(data_violations(variants[0], has_own_data=DATASETS in own_parts))
    yield from found


def _own_data_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    if values.get(SEPARATE):
        yield SEPARATE, f"`{SEPARATE}` has no effect: the program has data of its own; remove it"


def argument_violations(values: Mapping[str, Any], machine: Capabilities) -> Iterator[Violation]:
    """Yield each rule that arguments (by dest) break on a machine, whatever the program and the data are."""
    yield from silent_violations(values)
    yield from latent_violations(values)
    yield from norm_violations(values)
    yield from gemma_violations(values)
    yield from stablelm2_violations(values)
    yield from resuming_violations(values)
    yield from lora_violations(values)
    yield from pretrained_violations(values)
    yield from steering_violations(values)
    yield from retention_violations(values)
    yield from tracing_violations(values, machine.has_chip)
    yield from tracking_violations(values)
    yield from _machine_violations(values, machine)


def _machine_violations(values: Mapping[str, Any], machine: Capabilities) -> Iterator[Violation]:
    layers = values["transformer_impl"]
    on_cpu = [] if machine.has_chip else list(cpu_violations(values, machine.backend))
    yield from on_cpu
    if not machine.has_fused_layers:
        for name in ("moe_router_fusion", "moe_permute_fusion"):
            if values.get(name):
                yield name, f"`{name}` needs TransformerEngine, which is not installed; remove it"
        if layers == "local":
            yield from local_violations(values)
        elif layers == "transformer_engine" and machine.has_chip:
            what = "`transformer_impl: transformer_engine` needs TransformerEngine, which is not installed"
            yield "transformer_impl", f"{what}; use `torch`, or remove the key"
    yield from context_violations(values)
    yield from biased_expert_violations(values)
    yield from sink_violations(values)
    if layers == "torch":
        # Arguments that no layers support on CPU are reported once.
        blamed = {name for name, _ in on_cpu}
        yield from (violation for violation in torch_violations(values) if violation[0] not in blamed)
