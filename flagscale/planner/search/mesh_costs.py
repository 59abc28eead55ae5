"""The costs that a search needs: seconds and bytes of one layer in a mesh of given degrees.

The search rates millions of pipelines with these few numbers; the best are rated again by the models of
whole trainings (`step_time.py`, `memory.py`).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from flagscale.planner.search.cluster import Pool


class MeshDegrees(NamedTuple):
    """The degrees of a mesh apart from its stages, and its micro-batch."""

    tp: int
    cp: int
    ep: int
    etp: int
    dp: int
    micro_batch: int
    sequence_parallel: bool = False

    @property
    def per_stage(self) -> int:
        return self.tp * self.cp * self.dp

    @property
    def holders(self) -> int:
        """The ranks of a stage that each hold another part of a micro-step's activation."""
        return self.dp * self.cp * (self.tp if self.sequence_parallel else 1)


class LayerCosts(NamedTuple):
    """Costs on one rank.

    A stage of `n` layers, `k` of them recomputed, with `q` micro-batches in flight, takes
    `n seconds + k recompute` per micro-batch and
    `n static + q (n - k) kept + q k kept_recomputed + fixed` bytes.
    """

    seconds: float
    """Forward and backward pass of a layer for one micro-batch, with its share of what a step does once."""
    recompute: float
    """More seconds of a layer that is recomputed."""
    static: float
    """Bytes of a layer's parameters, gradients and optimizer states."""
    kept: float
    """Bytes of a layer per micro-batch in flight."""
    kept_recomputed: float
    """The same for a layer that is recomputed."""
    fixed: float
    """Bytes of any stage."""
    hand_over: float
    """Seconds per micro-batch of the messages between the stages of a mesh, if nothing hides them."""
    first_seconds: float
    """Of the embedding, per micro-batch."""
    first_bytes: float
    last_seconds: float
    """Of output, loss and prediction heads."""
    last_bytes: float
    room: float
    """Bytes that a rank can hold."""

    @property
    def saved(self) -> float:
        """Bytes that recomputing one layer saves per micro-batch in flight."""
        return self.kept - self.kept_recomputed


class Costs(Protocol):
    """A cost model of one training on any pool."""

    def layer(
        self, pool: Pool, degrees: MeshDegrees, modules: tuple[str, ...], micro_batches: int
    ) -> LayerCosts:
        """Return the costs of a layer whose `modules` are recomputed, for a step of `micro_batches`."""

    def crossing(self, source: tuple[Pool, MeshDegrees], target: tuple[Pool, MeshDegrees]) -> float:
        """Return the seconds of one message between two meshes, one micro-batch in one direction."""
