"""How a layer is divided over ranks, and how its work is done."""

from __future__ import annotations

from flagscale.frozen import dataclass


@dataclass(frozen=True)
class Division:
    """How a layer is divided over ranks, and how its work is done."""

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
    overlaps_tensor: bool = False
    exchange: str = "p2p"
    """Of keys and values between context parallel ranks."""
    stores_scores: bool = False
    fuses_activation: bool = True
    implementation: str = "transformer_engine"

    @property
    def tokens(self) -> float:
        """Of one rank, where tensor parallel ranks have the same ones."""
        return self.sequence * self.micro_batch / self.cp

    @property
    def own_tokens(self) -> float:
        """Of one rank where sequence parallelism divides them."""
        return self.tokens / self.tp if self.sequence_parallel else self.tokens
