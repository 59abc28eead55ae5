"""The operations of a layer, of the embedding and of the output: seconds of one micro-batch on one rank.

A multiplication stands for each weight that parameters.py lists. Communication is what of it is exposed: the
engine hides reduce-scatter behind the gradient of the weight, and gathers for that gradient behind the
gradient of the input (megatron/core/tensor_parallel/layers.py, 0.19.2; TransformerEngine does the same).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flagscale.checks.norms import POST, PRE
from flagscale.planner.model_shape import ModelShape
from flagscale.planner.parameters import Weight, layer_parameters
from flagscale.planner.sharding import Sharding
from flagscale.planner.time.collectives import Network
from flagscale.planner.time.seconds import Operation, Seconds
from flagscale.planner.time.speeds import Speeds


class LayerOperations:
    """Makes the operations for one model, sharding and chip."""

    def __init__(self, model: ModelShape, sharding: Sharding, speeds: Speeds, network: Network) -> None:
        self.model, self.sharding, self.speeds, self.network = model, sharding, speeds, network
        self.tp = network.group(sharding.tp, 1)
        self.cp = network.group(sharding.cp, sharding.tp)
        self.ep = network.group(sharding.ep, sharding.expert_tp)
        self.expert_tp = network.group(sharding.expert_tp, 1)

    def layer(self, is_moe: bool) -> Iterator[Operation]:
        """Yield the operations of one layer."""
        of, model = self.sharding, self.model
        listed = layer_parameters(model, of.tp, of.ep, of.expert_tp, is_moe, of.implementation)
        weights = {weight.module: weight for weight in listed.weights if len(weight.shape) == 2}
        before, after = model.norm_position != POST, model.norm_position != PRE
        if before:
            yield self._norm()
        if model.attention == "mla":
            yield from self._latent_projections(weights)
        else:
            yield self._column("qkv", weights["self_attention.linear_qkv"])
        if model.qk_norm_across_heads:
            yield self._norm_across_heads()
        yield self._rotate()
        yield self._attend()
        yield self._row("proj", weights["self_attention.linear_proj"])
        if after:
            yield self._norm("post_norm")
        yield self._add()
        if before:
            yield self._norm()
        if is_moe:
            yield from self._experts(weights)
        else:
            yield from self._mlp(weights, "mlp", ("fc1", "act", "fc2"))
        if after:
            yield self._norm("post_norm")
        yield self._add()

    def embedding(self) -> Iterator[Operation]:
        """Yield what is before all layers."""
        of, width = self.sharding, self.speeds.width
        nbytes = of.own_tokens * self.model.hidden * width
        sum_up = self._sum_up(of.tokens * self.model.hidden * width)
        gather = self.network.gather(of.tokens * self.model.hidden * width, self.tp)
        yield Operation(
            "embedding",
            Seconds(self.speeds.move(3 * nbytes), sum_up, 6),
            Seconds(self.speeds.move(6 * nbytes), gather if of.sequence_parallel else 0.0, 4),
        )

    def output(self, vocabulary: int, is_fused: bool) -> Iterator[Operation]:
        """Yield the output layer and the loss; `vocabulary`: padded, of all ranks."""
        of = self.sharding
        own = vocabulary / of.tp
        yield self._norm()
        yield self._linear("output", Weight("", "", (round(own), self.model.hidden)), True, is_plain=True)
        logits = of.tokens * own
        forward, backward, kernels = (6, 2, 6) if is_fused else (30, 12, 16)
        sums = 3 * self.network.reduce(4 * of.tokens, self.tp)
        yield Operation(
            "loss",
            Seconds(self.speeds.move(forward * logits), sums, kernels),
            Seconds(self.speeds.move(backward * logits), 0.0, 4),
        )

    def prediction_head(self, vocabulary: int, is_fused: bool, is_moe: bool) -> Iterator[Operation]:
        """Yield one prediction head: a projection of two inputs, a layer, the output and its loss."""
        hidden = self.model.hidden
        yield from self.embedding()
        yield self._norm()
        yield self._norm()
        yield self._linear("eh_proj", Weight("", "", (-(-hidden // self.sharding.tp), 2 * hidden)), True)
        yield from self.layer(is_moe)
        yield from self.output(vocabulary, is_fused)

    def _latent_projections(self, weights: Mapping[str, Weight]) -> Iterator[Operation]:
        own, model = self.sharding.own_tokens, self.model
        if model.q_lora:
            yield self._whole("down", weights["self_attention.linear_q_down_proj"], own)
            yield self._moved("norm", own * model.q_lora, 2, 4)
            yield self._column("up", weights["self_attention.linear_q_up_proj"])
        else:
            yield self._column("qkv", weights["self_attention.linear_q_proj"])
        yield self._whole("down", weights["self_attention.linear_kv_down_proj"], own)
        yield self._moved("norm", own * model.kv_lora, 2, 4)
        yield self._column("up", weights["self_attention.linear_kv_up_proj"])

    def _mlp(
        self, weights: Mapping[str, Weight], module: str, names: tuple[str, str, str]
    ) -> Iterator[Operation]:
        first, second = weights[f"{module}.linear_fc1"], weights[f"{module}.linear_fc2"]
        yield self._column(names[0], first)
        yield self._act(names[1], self.sharding.tokens * second.shape[1])
        yield self._row(names[2], second)

    def _experts(self, weights: Mapping[str, Weight]) -> Iterator[Operation]:
        of, model, speeds = self.sharding, self.model, self.speeds
        own = of.own_tokens
        scores = own * model.experts
        route = speeds.multiply(own, model.experts, model.hidden, is_plain=True)
        yield Operation(
            "router",
            Seconds(route + speeds.move(40 * scores), 0.0, 20),
            Seconds(2 * route + speeds.move(20 * scores), 0.0, 14),
        )
        rows = own * model.topk * of.capacity
        nbytes = rows * model.hidden * speeds.width
        first, second = weights["mlp.experts.linear_fc1"], weights["mlp.experts.linear_fc2"]
        local = first.count
        received = rows * of.expert_tp
        sort = 2 * nbytes * of.expert_tp if local > 1 else 0.0
        communication = self.network.exchange(nbytes, self.ep)
        communication += self.network.gather(nbytes * of.expert_tp, self.expert_tp)
        moved = Seconds(speeds.move(2 * nbytes) + speeds.move(sort), communication, 8)
        yield Operation("dispatch", moved, moved)
        yield self._grouped(first, received / local)
        yield self._act("expert_act", received * second.shape[1])
        yield self._grouped(second, received / local)
        yield Operation("combine", moved, moved)
        if model.shared_ffn:
            yield from self._mlp(weights, "mlp.shared_experts", ("shared", "shared", "shared"))

    def _column(self, module: str, weight: Weight) -> Operation:
        """Return a layer whose outputs are divided: its input is gathered, its gradient summed."""
        return self._linear(module, weight, True)

    def _row(self, module: str, weight: Weight) -> Operation:
        """Return a layer whose inputs are divided: its output is summed, its gradient gathered."""
        return self._linear(module, weight, False)

    def _whole(self, module: str, weight: Weight, tokens: float) -> Operation:
        forward, to_input, to_weight = self._products(weight, tokens)
        return Operation(module, Seconds(forward, 0.0, 1), Seconds(to_input + to_weight, 0.0, 2))

    def _linear(self, module: str, weight: Weight, is_column: bool, is_plain: bool = False) -> Operation:
        of = self.sharding
        forward, to_input, to_weight = self._products(weight, of.tokens, is_plain)
        casts = 2 if self.speeds.is_narrow and not is_plain else 0
        ahead = behind = 0.0
        if of.tp > 1:
            width = weight.shape[1] if is_column else weight.shape[0]
            nbytes = of.tokens * width * self.speeds.width
            gather = self.network.gather(nbytes, self.tp) if of.sequence_parallel else 0.0
            sum_up = self._sum_up(nbytes)
            if is_column:
                ahead = self._exposed(gather, forward)
                behind = max(0.0, sum_up - to_weight) + max(0.0, gather - to_input)
            else:
                ahead = self._exposed(sum_up, forward)
                behind = self._exposed(gather, to_input + to_weight)
        return Operation(
            module,
            Seconds(forward, ahead, 1 + casts),
            Seconds(to_input + to_weight, behind, 2 + casts),
        )

    def _products(self, weight: Weight, tokens: float, is_plain: bool = False) -> tuple[float, float, float]:
        """Return the seconds of the product, of its input's gradient, and of its weight's, casts included."""
        out, into = weight.shape
        speeds = self.speeds
        forward = speeds.multiply(tokens, out, into, is_plain)
        to_input = speeds.multiply(tokens, into, out, is_plain)
        # The gradient is added to its float32 buffer: one read, one write.
        to_weight = speeds.multiply(out, into, tokens, is_plain, out_width=8.0)
        if out % _ALIGNED or into % _ALIGNED:
            forward, to_input, to_weight = (_UNALIGNED * one for one in (forward, to_input, to_weight))
        if speeds.is_narrow and not is_plain:
            forward += speeds.move(_CAST_BYTES * tokens * into)
            to_input += speeds.move(_CAST_BYTES * tokens * out)
        return forward, to_input, to_weight

    def _grouped(self, weight: Weight, tokens: float) -> Operation:
        """Return one layer of all experts of a rank; `tokens`: of each expert."""
        (out, into), count, speeds = weight.shape, weight.count, self.speeds
        forward = speeds.multiply_groups(count, tokens, out, into)
        to_input = speeds.multiply_groups(count, tokens, into, out)
        to_weight = speeds.multiply_groups(count, out, into, tokens, out_width=8.0)
        if speeds.is_narrow:
            forward += speeds.move(_CAST_BYTES * count * tokens * into)
            to_input += speeds.move(_CAST_BYTES * count * tokens * out)
        # One call starts the products of all experts, without Python between them.
        calls = 1 + count / 10
        return Operation(
            "experts", Seconds(forward, 0.0, calls), Seconds(to_input + to_weight, 0.0, 2 * calls)
        )

    def _attend(self) -> Operation:
        of, model, speeds = self.sharding, self.model, self.speeds
        if model.attention == "mla":
            key, value = model.qk_nope_dim + model.rope_dim, model.v_dim
            groups = model.heads / of.tp
        else:
            key = value = model.head_dim
            groups = max(1.0, model.groups / of.tp)
        heads, mean = of.micro_batch * model.heads / of.tp, (key + value) / 2
        kernels = 6
        if of.stores_scores:
            # The fused kernel takes four heads at a time (megatron/core/fusions/fused_softmax.py, 0.19.2).
            is_fused = heads % 4 == 0
            forward, backward = self._stored_scores(heads, mean, 1 if is_fused else 2)
            kernels = 6 if is_fused else 14
        else:
            forward = speeds.attend(of.sequence, heads, mean, False, 1 / of.cp)
            backward = speeds.attend(of.sequence, heads, mean, True, 1 / of.cp)
        ahead = behind = 0.0
        if of.cp > 1:
            shared = of.tokens * groups * (key + value) * speeds.width
            rest = of.tokens * model.heads / of.tp * (key + value) * speeds.width
            ahead, behind = self._shared_keys(shared, rest, forward, backward)
        return Operation("core_attn", Seconds(forward, ahead, kernels), Seconds(backward, behind, kernels))

    def _stored_scores(self, heads: float, mean: float, passes: int) -> tuple[float, float]:
        """Return the seconds of attention that computes and stores the scores of all pairs of tokens."""
        of, speeds = self.sharding, self.speeds
        own = of.sequence / of.cp
        one = speeds.multiply(heads * own, of.sequence, mean, is_plain=True)
        scores = heads * own * of.sequence
        masked = self.model.attention_dropout
        forward = 2 * one + speeds.move(passes * (4 + 5 * masked) * scores)
        return forward, 4 * one + speeds.move(passes * (6 + 5 * masked) * scores)

    def _shared_keys(self, keys: float, rest: float, forward: float, backward: float) -> tuple[float, float]:
        """Return what is exposed of the exchange between context parallel ranks.

        `keys`: bytes of this rank's keys and values; `rest`: of its queries and outputs.
        """
        cp, network = self.sharding.cp, self.network
        if self.sharding.exchange == "p2p":
            rounds, is_inside = cp - 1, self.cp.inside == cp
            hidden = rounds / cp
            return (
                max(0.0, rounds * network.send(keys, is_inside) - hidden * forward),
                max(0.0, rounds * network.send(2 * keys, is_inside) - hidden * backward),
            )
        if self.sharding.exchange == "all_gather":
            gather = network.gather(keys * cp, self.cp)
            return gather, gather + network.gather(keys * cp, self.cp, "reduce_scatter")
        exchange = network.exchange(keys + rest, self.cp)
        return exchange, exchange

    def _rotate(self) -> Operation:
        model, of = self.model, self.sharding
        if model.learned_positions:
            return Operation("rope", Seconds(), Seconds())
        if model.attention == "mla":
            elements = 2 * model.heads * (model.qk_nope_dim + model.rope_dim) / of.tp
        else:
            elements = (model.heads + model.groups) * model.head_dim / of.tp
        return self._moved("rope", of.tokens * elements, 2, 2, kernels=2)

    def _norm(self, name: str = "norm") -> Operation:
        return self._moved(name, self.sharding.own_tokens * self.model.hidden, 2, 4)

    def _norm_across_heads(self) -> Operation:
        """Return the norms of queries and of keys, each with one sum per token over tensor parallel ranks."""
        of, model = self.sharding, self.model
        elements = of.tokens * (model.heads + model.groups) * model.head_dim / of.tp
        own = self._moved("qk_norm", elements, 2, 4, kernels=2)
        sums = Seconds(0.0, 2 * self.network.reduce(4 * of.tokens, self.tp), 0)
        return Operation(own.module, own.forward + sums, own.backward + sums)

    def _add(self) -> Operation:
        passes = 3.5 if self.model.dropout else 3
        return self._moved("add", self.sharding.own_tokens * self.model.hidden, passes, 2)

    def _act(self, module: str, elements: float) -> Operation:
        forward, backward = (3, 5) if self.model.gated else (2, 3)
        factor = 1 if self.sharding.fused_activation else 2
        return self._moved(module, elements, factor * forward, factor * backward, kernels=factor)

    def _moved(
        self, module: str, elements: float, forward: float, backward: float, kernels: int = 1
    ) -> Operation:
        """Return element-wise work that passes over so many elements, once or more in each direction."""
        speeds = self.speeds
        nbytes = elements * speeds.width
        return Operation(
            module,
            Seconds(speeds.move(forward * nbytes), 0.0, kernels),
            Seconds(speeds.move(backward * nbytes), 0.0, 1 + kernels),
        )

    def _sum_up(self, nbytes: float) -> float:
        """Return the seconds in which tensor parallel ranks add what each of them has."""
        if self.sharding.sequence_parallel:
            return self.network.gather(nbytes, self.tp, "reduce_scatter")
        return self.network.reduce(nbytes, self.tp)

    def _exposed(self, communication: float, compute: float) -> float:
        """Return what is exposed of a collective that the engine can cut and overlap with a product."""
        if not self.sharding.overlaps_tensor:
            return communication
        return max(communication - compute, communication / self.sharding.tp)


_ALIGNED = 8
"""Elements of two bytes that a multiplication loads at once; rows of another length need smaller loads."""
_UNALIGNED = 2.0
"""Times as long as with such rows: a round figure, not fitted. NVIDIA's guide "Matrix Multiplication
Background" asks for multiples of 16 bytes."""

_CAST_BYTES = 4
"""Per element of an input: one read, two writes, as it is and transposed."""
