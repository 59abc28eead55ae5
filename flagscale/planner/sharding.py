"""How a layer is divided over the ranks of a stage, and how its work is done."""

from __future__ import annotations

from flagscale.frozen import dataclass
from flagscale.planner.training import Training


@dataclass(frozen=True)
class Sharding:
    """Everything that decides the sizes of a layer's tensors on one rank, beside the shape of the model."""

    sequence: int
    """Tokens per sample."""
    micro_batch: int
    """Samples."""
    tp: int = 1
    cp: int = 1
    ep: int = 1
    expert_tp: int = 1
    sequence_parallel: bool = False
    capacity: float = 1.0
    """Tokens that an expert takes, relative to a balanced share."""
    width: int = 2
    """Bytes per element of activations."""
    narrow: int = 2
    """Bytes per element of an input that only a multiplication needs: 1 in fp8."""
    overlaps_tensor: bool = False
    exchange: str = "p2p"
    """Of keys and values between context parallel ranks."""
    stores_scores: bool = False
    """Whether attention stores its scores for all pairs of tokens, as `local` layers do."""
    fused_activation: bool = True
    implementation: str = "transformer_engine"

    @property
    def tokens(self) -> float:
        """Of one micro-batch on one rank, before tensor parallelism divides anything."""
        return self.sequence * self.micro_batch / self.cp

    @property
    def own_tokens(self) -> float:
        """Of one rank where sequence parallelism divides them: in the residual stream and in norms."""
        return self.tokens / self.tp if self.sequence_parallel else self.tokens

    @property
    def routed(self) -> float:
        """Tokens that the experts of one rank process for each expert that a token chooses."""
        return self.capacity * self.tokens * self.expert_tp / self.tp


def sharding_of(training: Training, mesh: int) -> Sharding:
    """Return how the layers of a mesh, by its number, are divided."""
    degrees, block = training.layout.meshes[mesh], training.blocks[mesh]
    compute = training.numerics.compute
    width = 4 if compute == "float32" else 2
    return Sharding(
        sequence=training.sequence,
        micro_batch=block.micro_batch,
        tp=degrees.tp,
        cp=degrees.cp,
        ep=degrees.ep,
        expert_tp=block.expert_tp,
        sequence_parallel=block.sequence_parallel,
        capacity=training.capacity or 1.0,
        width=width,
        narrow=1 if compute in ("fp8", "fp4") else width,
        overlaps_tensor=training.overlap_tensor,
        exchange=training.exchange,
        stores_scores=training.stores_scores or training.implementation == "local",
        fused_activation=training.fused_activation,
        implementation=training.implementation,
    )
