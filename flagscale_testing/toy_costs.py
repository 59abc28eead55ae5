"""A small cost model for searches of plans: plausible, in closed form, and quick."""

from __future__ import annotations

from math import log2

from flagscale.frozen import dataclass
from flagscale.planner.search.cluster import Pool
from flagscale.planner.search.mesh_costs import LayerCosts, MeshDegrees
from flagscale.planner.training import Training


@dataclass(frozen=True)
class ToyCosts:
    """Costs from the sizes of the model and the nominal figures of chips."""

    training: Training

    def layer(
        self, pool: Pool, degrees: MeshDegrees, modules: tuple[str, ...], micro_batches: int
    ) -> LayerCosts:
        model, chip, numerics = self.training.model, pool.chip, self.training.numerics
        tp, cp = degrees.tp, degrees.cp
        tokens = degrees.micro_batch * self.training.sequence / cp
        parameters = model.hidden * (2 * model.hidden + 2 * model.groups * model.head_dim + 3 * model.ffn)
        flop = 6 * tokens * (parameters + self.training.sequence * model.hidden)
        rate = chip.flop_s["bfloat16"] * min(0.6, 0.35 + 0.02 * log2(tokens)) * (1 - 0.05 * log2(tp))
        act = tokens * model.hidden * 2
        messages = 8 * act * (tp - 1) / tp / chip.inside.bytes_s if tp > 1 else 0.0
        messages += 4 * act * (cp - 1) / cp / chip.outside.bytes_s
        copies = degrees.dp * cp
        once = 4 * parameters / tp * (copies > 1) / chip.outside.bytes_s
        each = numerics.parameter_bytes + numerics.gradient_bytes
        each += numerics.state_bytes / (copies if numerics.distributed else 1)
        share = 0.6 if modules else 1.0
        kept, again = act * 17 / tp * share, act / (tp if degrees.sequence_parallel else 1)
        table = self.training.padded_vocabulary * model.hidden
        head = 6 * tokens * table / (rate * tp)
        seconds = flop / (rate * tp) * (1.1 if modules else 1) + messages + once / micro_batches + 2e-4
        return LayerCosts(
            seconds=seconds,
            recompute=0.0 if modules else seconds / 3,
            static=parameters / tp * each,
            kept=kept,
            kept_recomputed=kept if modules else again,
            fixed=1e9,
            hand_over=2 * act / tp / chip.outside.bytes_s,
            first_seconds=1e-5,
            first_bytes=table / tp * each,
            last_seconds=head,
            last_bytes=table / tp * each + 6 * tokens * self.training.padded_vocabulary / tp,
            room=0.94 * chip.memory_bytes,
        )

    def crossing(self, source: tuple[Pool, MeshDegrees], target: tuple[Pool, MeshDegrees]) -> float:
        degrees = source[1]
        nbytes = degrees.dp * degrees.micro_batch * self.training.sequence * self.training.model.hidden * 2
        slower = min(source[0].chip.outside.bytes_s, target[0].chip.outside.bytes_s)
        return 1e-5 + nbytes / min(source[1].holders, target[1].holders) / slower
