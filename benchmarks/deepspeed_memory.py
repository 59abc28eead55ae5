"""The memory on a device of Sailor's jobs, which run on DeepSpeed, not on the engine that the planner models.

Facts of eth-easl/sailor (cf2c8e3cc53ce178fe58a4003f46b4b6b848fc33), none fitted to its rows by us:

* Gradients are reduced in a flat copy of them, of up to 500 M elements (deepspeed/engine.py,
  `allreduce_bucket`). No activations are alive then, but the allocator cannot join their blocks.
* What nvidia-smi shows outside of PyTorch: 3 GB with tensor parallelism, otherwise 2 GB, by its planner for
  all chips (planner_utils.cpp, `check_stage_fits`); 5.06 GB on GH200, most of it fused kernels, by its
  simulator (runtime_simulator.py, `get_memory_footprint_on_gpu`).
"""

from __future__ import annotations

from flagscale.planner.memory.stage_memory import StageMemory
from flagscale.planner.training import Training

OUTSIDE, OUTSIDE_ALONE = 3.0e9, 2.0e9
"""Bytes of the driver, the kernels and the communication library, with tensor parallelism and without."""
OUTSIDE_OF = {"GH-96": 5.06e9}
"""Chips for which the source has another figure."""
MOST_FLAT = 4 * 500_000_000
"""Bytes of one bucket of flat gradients."""


def on_device(job: Training, memory: StageMemory) -> float:
    """Return the bytes that nvidia-smi shows for a rank of one stage."""
    stage = job.layout.stages[memory.stage]
    chip = job.blocks[stage.mesh].chip.name
    gradients = sum(term.nbytes for term in memory.terms if term.name == "gradients")
    outside = OUTSIDE_OF.get(chip, OUTSIDE if stage.tp > 1 else OUTSIDE_ALONE)
    return memory.reserved + min(gradients, MOST_FLAT) + outside
