"""Seconds of one pipeline stage: its model chunks, its gradients and parameters, its optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from flagscale.checks.hetero.layout import Stage
from flagscale.checks.recompute import Setting
from flagscale.frozen import dataclass, replace
from flagscale.planner.parameters import stage_parameters
from flagscale.planner.sharding import sharding_of
from flagscale.planner.time.collectives import Group, network
from flagscale.planner.time.constants import Constants
from flagscale.planner.time.layer_time import LayerTime, summed, without_host
from flagscale.planner.time.operations import LayerOperations
from flagscale.planner.time.seconds import Seconds
from flagscale.planner.time.speeds import speeds
from flagscale.planner.training import Training


@dataclass(frozen=True)
class ChunkTime:
    """Seconds of one micro-batch in one model chunk, and what of them is exposed communication."""

    forward: float
    forward_communication: float
    backward: tuple[float, ...]
    """One value for all micro-batches, or one for each."""
    backward_communication: tuple[float, ...]

    def communication(self, micro_batches: int) -> float:
        """Return the exposed communication of a step."""
        repeats = micro_batches // len(self.backward_communication)
        return micro_batches * self.forward_communication + repeats * sum(self.backward_communication)


class MeshTimes:
    """The chip's rates and the time of each kind of layer, which all stages of a mesh have in common."""

    def __init__(self, training: Training, number: int, constants: Constants) -> None:
        block = training.blocks[number]
        self.captured = training.captured
        if "full_iteration" in self.captured:
            constants = replace(constants, launch_s=0.0)
        self.speeds = speeds(block.chip, training.numerics.compute, constants)
        self.network = network(block.chip, block.per_node, constants)
        sharding = sharding_of(training, number)
        self.operations = LayerOperations(training.model, sharding, self.speeds, self.network)
        self.vocabulary, self.fuses_loss = training.padded_vocabulary, training.fused_loss
        self._layers: dict[bool, LayerTime] = {}
        self._weights: dict[tuple[int, ...], tuple[int, int]] = {}

    def layer(self, is_moe: bool) -> LayerTime:
        if is_moe not in self._layers:
            self._layers[is_moe] = summed(without_host(self.operations.layer(is_moe), self.captured))
        return self._layers[is_moe]

    def weights(self, training: Training, stage: Stage) -> tuple[int, int]:
        """Return the elements of a rank's ordinary weights and of its experts."""
        stages, experts = training.layout.stages, training.model.experts_in
        heads = training.heads_position % len(stages)
        place = stage.index if stage.index in (0, heads, len(stages) - 1) else -1
        owned = [layer for chunk in range(len(stage.chunks)) for layer in training.chunk_layers(stage, chunk)]
        # Stages between the ends differ in the number of layers only.
        key = place, len(owned), sum(experts[layer] for layer in owned)
        if key not in self._weights:
            found = stage_parameters(training, stage)
            self._weights[key] = found.dense, found.expert
        return self._weights[key]

    def embedding(self) -> LayerTime:
        return summed(self.operations.embedding())

    def output(self) -> LayerTime:
        return summed(self.operations.output(self.vocabulary, self.fuses_loss))

    def prediction_head(self) -> LayerTime:
        is_moe = self.operations.model.experts_in[-1]
        return summed(self.operations.prediction_head(self.vocabulary, self.fuses_loss, is_moe))


class StageTimes:
    """The times of one stage."""

    def __init__(
        self,
        training: Training,
        stage: Stage,
        of_mesh: MeshTimes,
        weights: tuple[int, int] | None = None,
    ) -> None:
        """`weights`: as `MeshTimes.weights`, if the caller has them."""
        self.training, self.stage, self.of_mesh = training, stage, of_mesh
        self.network = of_mesh.network
        self._weights = weights

    @cached_property
    def shares(self) -> tuple[tuple[int, Group, Group], ...]:
        """Elements of a rank's weights, the ranks over which an optimizer's states of them are divided, and
        those that have the same part in another instance of the optimizer.
        """
        training, stage = self.training, self.stage
        block, mesh = training.blocks[stage.mesh], training.layout.meshes[stage.mesh]
        weights = self._weights or self.of_mesh.weights(training, stage)
        strides = stage.tp, block.expert_tp * mesh.ep
        instances = training.numerics.instances if training.numerics.distributed else 1
        found = []
        for count, copies, stride in zip(weights, training.copies(stage), strides, strict=True):
            owners = max(1, copies // instances)
            twins = self.network.group(copies // owners, stride * owners)
            found.append((count, self.network.group(owners, stride), twins))
        return tuple(found)

    def chunks(self) -> tuple[ChunkTime, ...]:
        """Return the times of all model chunks."""
        return tuple(self._chunk(chunk) for chunk in range(len(self.stage.chunks)))

    def reduce_s(self) -> float:
        """Return the seconds in which gradients are reduced, if nothing hides them."""
        numerics, network = self.training.numerics, self.network
        if numerics.distributed:
            return sum(
                network.gather(numerics.gradient_bytes * count, owners, "reduce_scatter")
                + network.reduce(numerics.gradient_bytes * count / owners.size, twins)
                for count, owners, twins in self.shares
            )
        return sum(
            network.reduce(numerics.gradient_bytes * count, owners) for count, owners, _ in self.shares
        )

    def gather_s(self) -> float:
        """Return the seconds in which the distributed optimizer gathers parameters, if nothing hides them."""
        numerics = self.training.numerics
        if not numerics.distributed:
            return 0.0
        return sum(
            self.network.gather(numerics.parameter_bytes * count, owners) for count, owners, _ in self.shares
        )

    def update_s(self) -> float:
        """Return the seconds of the optimizer.

        It reads and writes its states, reads gradients twice (once for their norm), writes parameters, and
        clears the whole buffer of gradients.
        """
        numerics = self.training.numerics
        own = sum(count / (owners.size if numerics.distributed else 1) for count, owners, _ in self.shares)
        whole = sum(count for count, _, _ in self.shares)
        per_element = 2 * numerics.state_bytes + 2 * numerics.gradient_bytes + numerics.parameter_bytes
        return self.of_mesh.speeds.move(own * per_element + whole * numerics.gradient_bytes)

    def norm_s(self) -> float:
        """Return the seconds in which all ranks agree on the norm of the gradients and on overflows."""
        return 2 * self.network.reduce(4, self.network.group(self.training.layout.world_size, 1))

    def _chunk(self, chunk: int) -> ChunkTime:
        training, of = self.training, self.of_mesh
        number = training.position(self.stage, chunk)
        kinds = [training.model.experts_in[layer] for layer in training.chunk_layers(self.stage, chunk)]
        forward, backward = _Passed(of.speeds.launch_s), _Passed(of.speeds.launch_s)
        for is_moe in (False, True):
            if count := kinds.count(is_moe):
                layer = of.layer(is_moe)
                passed = layer.forward, layer.backward + layer.recomputed(training.recompute.modules)
                if is_moe and training.overlap_experts:
                    passed = passed[0].overlapped(), passed[1].overlapped()
                forward.add(passed[0], count)
                backward.add(passed[1], count)
        for other in self._others(number):
            forward.add(other.forward)
            backward.add(other.backward)
        backwards = [backward.with_more(of, more) for more in self._computed_again(number, kinds)]
        return ChunkTime(
            forward.seconds,
            forward.communication,
            tuple(one.seconds for one in backwards),
            tuple(one.communication for one in backwards),
        )

    def _others(self, number: int) -> Iterator[LayerTime]:
        """Yield what a chunk computes beside its layers."""
        training = self.training
        if number == 0:
            yield self.of_mesh.embedding()
        if number == training.heads_position:
            for _ in range(training.model.prediction_heads):
                yield self.of_mesh.prediction_head()
        if number == training.last_position:
            yield self.of_mesh.output()

    def _computed_again(self, number: int, kinds: list[bool]) -> list[list[bool]]:
        """Return the layers of a chunk that are computed again: one list, or one for each micro-batch."""
        schedule = self.training.recompute.schedule
        if schedule is None:
            return [_chosen(self.training.recompute.full, kinds)]
        return [
            _chosen(schedule.resolve(number, micro_batch), kinds)
            for micro_batch in range(self.training.micro_batches)
        ]


class _Passed:
    """Adds up the seconds that pass in one direction."""

    def __init__(self, launch_s: float, seconds: float = 0.0, communication: float = 0.0) -> None:
        self.launch_s, self.seconds, self.communication = launch_s, seconds, communication

    def add(self, one: Seconds, count: int = 1) -> None:
        self.seconds += count * one.total(self.launch_s)
        self.communication += count * one.communication

    def with_more(self, of_mesh: MeshTimes, kinds: list[bool]) -> _Passed:
        """Return a copy with the forward passes of some layers."""
        found = _Passed(self.launch_s, self.seconds, self.communication)
        for is_moe in {*kinds}:
            found.add(of_mesh.layer(is_moe).forward, kinds.count(is_moe))
        return found


def _chosen(setting: Setting | None, kinds: list[bool]) -> list[bool]:
    if setting is None or setting.granularity is None:
        return []
    return kinds[: setting.num_layers] if setting.method == "block" else kinds
