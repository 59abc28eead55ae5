"""The costs of one layer by the models of time and memory, for searches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.frozen import replace
from flagscale.planner.calibration import Calibration
from flagscale.planner.memory.live import NOTHING, chunk_memory
from flagscale.planner.memory.stage_layers import stage_layers
from flagscale.planner.memory.stage_memory import RESERVE
from flagscale.planner.memory.static import engine_buffers, outside_memory, static_memory
from flagscale.planner.parameters import Parameters, stage_parameters
from flagscale.planner.search.cluster import Cluster, Pool
from flagscale.planner.search.mesh_costs import LayerCosts, MeshDegrees
from flagscale.planner.sharding import sharding_of
from flagscale.planner.time.collectives import Network, network
from flagscale.planner.time.constants import Constants
from flagscale.planner.time.speeds import Speeds, speeds
from flagscale.planner.time.stage_time import MeshTimes, StageTimes
from flagscale.planner.time.step_time import crossing_s
from flagscale.planner.training import Block, Recompute, Training

Figures = tuple[float, ...]
Measured = tuple[Figures, Figures]
"""Seconds and bytes."""


class EstimatedCosts:
    """Costs of a training's layers: three stages of one layer each stand for the first, a middle, the last.

    Where a model has two kinds of layers, seconds are those of the mean, bytes those of its worst run.
    """

    def __init__(
        self,
        training: Training,
        cluster: Cluster,
        constants: Constants,
        calibration: Calibration | None = None,
        memory_factor: float = 1.0,
    ) -> None:
        """`memory_factor`: how many times its estimate a rank may need."""
        self.training, self.cluster = training, cluster
        self.calibration, self.memory_factor = calibration or Calibration(), memory_factor
        self.constants = replace(constants, launch_s=self.calibration.host * constants.launch_s)
        model = training.model
        self.shares = _shares(model.experts_in)
        self.models = {is_moe: replace(model, experts_in=(is_moe,) * 3) for is_moe in self.shares}
        size = min(4, model.layers)
        runs = [model.experts_in[first : first + size] for first in range(model.layers - size + 1)]
        self.worst_shares = _shares(max(runs, key=sum))
        self._speeds = {pool.type: self._speeds_of(pool) for pool in cluster.pools}
        self._known: dict[object, Measured] = {}
        self._times: dict[object, MeshTimes] = {}
        self._weights: dict[object, tuple[Parameters, ...]] = {}

    def layer(
        self, pool: Pool, degrees: MeshDegrees, modules: tuple[str, ...], micro_batches: int
    ) -> LayerCosts:
        """Return the costs of a layer; see `Costs`."""
        # What depends on the micro-batch does not depend on the copies of the model, and the reverse.
        one_copy = degrees._replace(dp=1)
        work = self._cached(EstimatedCosts._work, pool, one_copy, ())
        held = self._cached(EstimatedCosts._held, pool, degrees._replace(micro_batch=1), ())
        (seconds, again, first_s, last_s), (kept, input_kept, passing, first_kept, last_kept) = work
        (once,), (static, outside, first_static, last_static) = held
        if modules:
            (more,), (kept, passing) = self._cached(EstimatedCosts._selected, pool, one_copy, modules)
            seconds, again, kept_recomputed = seconds + more, 0.0, kept
        else:
            kept_recomputed = input_kept
        net = self._speeds[pool.type][1]
        is_inside = pool.hosts == 1 or degrees.per_stage < net.domain
        return LayerCosts(
            seconds=seconds + once / micro_batches,
            recompute=again,
            static=static,
            kept=kept,
            kept_recomputed=kept_recomputed,
            fixed=passing + outside / (1 + RESERVE),
            hand_over=2 * net.send(input_kept, is_inside),
            first_seconds=first_s,
            first_bytes=first_kept + first_static,
            last_seconds=last_s,
            last_bytes=last_kept + last_static,
            room=(pool.chip.memory_bytes - self.calibration.memory_bytes)
            / self.memory_factor
            / (1 + RESERVE),
        )

    def crossing(self, source: tuple[Pool, MeshDegrees], target: tuple[Pool, MeshDegrees]) -> float:
        """Return the seconds of one message between two meshes, as `step_time` does."""
        (one, degrees), (other, _) = source, target
        route = self.cluster.route(one, other)
        samples, width = degrees.dp * degrees.micro_batch, self._speeds[one.type][0].width
        whole = samples * self.training.sequence * self.training.model.hidden * width
        ends = [(self._speeds[pool.type][1], of.per_stage) for pool, of in (source, target)]
        return crossing_s(whole, ends, route.link, route.through_host)

    def _speeds_of(self, pool: Pool) -> tuple[Speeds, Network]:
        compute = self.training.numerics.compute
        return speeds(pool.chip, compute, self.constants), network(pool.chip, pool.per_host, self.constants)

    def _cached(
        self,
        measure: Callable[[EstimatedCosts, Training, object], Measured],
        pool: Pool,
        degrees: MeshDegrees,
        modules: tuple[str, ...],
    ) -> Measured:
        key = (measure, pool.type, degrees, modules)
        if key not in self._known:
            found = {
                is_moe: measure(
                    self, self._probe(pool, degrees, modules, is_moe), (pool.type, degrees, is_moe)
                )
                for is_moe in self.shares
            }
            seconds = _mean({is_moe: one[0] for is_moe, one in found.items()}, self.shares)
            nbytes = _mean({is_moe: one[1] for is_moe, one in found.items()}, self.worst_shares)
            self._known[key] = seconds, nbytes
        return self._known[key]

    def _work(self, probe: Training, key: object) -> Measured:
        """Return what micro-batches cost: seconds and bytes of a middle layer, more of both at the ends."""
        of_mesh = self._times[key] = MeshTimes(probe, 0, self.constants)
        stages = probe.layout.stages
        seconds = []
        for stage in stages:
            (chunk,) = StageTimes(probe, stage, of_mesh).chunks()
            seconds.append(chunk.forward + chunk.backward[0])
        layers = stage_layers(probe, stages[1])
        chunks = [chunk_memory(probe, stage, layers, 0, NOTHING) for stage in stages]
        passing = [max(chunk.forward, chunk.backward) for chunk in chunks]
        for number, parameters in enumerate(self._parameters(probe)):
            buffers = engine_buffers(probe, stages[number], parameters, layers.sharding)
            passing[number] += sum(nbytes for _, nbytes in buffers)
        more = [chunks[end].nbytes + passing[end] - chunks[1].nbytes - passing[1] for end in (0, 2)]
        sharding, model = layers.sharding, probe.model
        again = of_mesh.layer(model.experts_in[0]).forward.total(of_mesh.speeds.launch_s)
        return (
            (seconds[1], again, seconds[0] - seconds[1], seconds[2] - seconds[1]),
            (chunks[1].nbytes, sharding.own_tokens * model.hidden * sharding.width, passing[1], *more),
        )

    def _selected(self, probe: Training, key: object) -> Measured:
        """Return what recomputing modules costs and leaves: seconds; bytes that are kept, and in passing."""
        of_mesh, stage = self._times[key], probe.layout.stages[1]
        layers = stage_layers(probe, stage)
        chunk = chunk_memory(probe, stage, layers, 0, NOTHING)
        again = of_mesh.layer(probe.model.experts_in[0]).recomputed(probe.recompute.modules)
        buffers = engine_buffers(probe, stage, self._parameters(probe)[1], layers.sharding)
        passing = max(chunk.forward, chunk.backward) + sum(nbytes for _, nbytes in buffers)
        return (again.total(of_mesh.speeds.launch_s),), (chunk.nbytes, passing)

    def _held(self, probe: Training, key: object) -> Measured:
        """Return what copies of the model cost: seconds per step; bytes of weights, and outside."""
        stages = probe.layout.stages
        weights = self._parameters(probe)
        static = [
            sum(nbytes for _, nbytes in static_memory(probe, *pair))
            for pair in zip(stages, weights, strict=True)
        ]
        times = StageTimes(
            probe, stages[1], MeshTimes(probe, 0, self.constants), (weights[1].dense, weights[1].expert)
        )
        once = times.update_s() + (0.0 if probe.overlap_gradients else times.reduce_s())
        once += 0.0 if probe.overlap_parameters else times.gather_s()
        # One sample's buffers of overlapped products; the whole model of memory counts those of all.
        outside = sum(nbytes for _, nbytes in outside_memory(probe, stages[1], sharding_of(probe, 0)))
        return (once,), (static[1], outside, static[0] - static[1], static[2] - static[1])

    def _parameters(self, probe: Training) -> tuple[Parameters, ...]:
        """Return the weights of all stages, which neither the copies nor the micro-batch change."""
        (mesh,), (block,) = probe.layout.meshes, probe.blocks
        key = (mesh.tp, mesh.ep, block.expert_tp, probe.model.experts_in[0])
        if key not in self._weights:
            self._weights[key] = tuple(stage_parameters(probe, stage) for stage in probe.layout.stages)
        return self._weights[key]

    def _probe(self, pool: Pool, degrees: MeshDegrees, modules: tuple[str, ...], is_moe: bool) -> Training:
        """Return a training with three stages of one layer of one kind each."""
        layers = ((1,), (1,), (1,))
        mesh = Mesh(degrees.tp, degrees.cp, degrees.ep, degrees.dp, 3, layers, degrees.sequence_parallel)
        block = Block(pool.chip, degrees.micro_batch, degrees.etp, degrees.sequence_parallel, pool.per_host)
        return replace(
            self.training,
            model=self.models[is_moe],
            layout=HeteroLayout((mesh,)),
            blocks=(block,),
            batch=degrees.dp * degrees.micro_batch,
            recompute=Recompute(modules=modules),
            prediction_chunk=None,
            crossings=(),
        )


def _shares(layers: Sequence[bool]) -> Mapping[bool, float]:
    """Return the share of each kind of layer that occurs."""
    count = sum(layers) / len(layers)
    return {is_moe: share for is_moe, share in ((False, 1 - count), (True, count)) if share}


def _mean(found: Mapping[bool, Figures], shares: Mapping[bool, float]) -> Figures:
    weighted = ([share * figure for figure in found[is_moe]] for is_moe, share in shares.items())
    return tuple(map(sum, zip(*weighted, strict=True)))
