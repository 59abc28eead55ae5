"""The search of plans: the optimum on small clusters, legal plans everywhere, clear messages otherwise."""

from __future__ import annotations

import pytest

from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.errors import UserError
from flagscale.frozen import replace
from flagscale.planner.chips import Chip, Link
from flagscale.planner.memory.stage_memory import memory
from flagscale.planner.model_shape import ModelShape
from flagscale.planner.search.cluster import Cluster, Pool, Route
from flagscale.planner.search.layer_split import Part, Pipeline, best_split, rated
from flagscale.planner.search.mesh_costs import LayerCosts, MeshDegrees
from flagscale.planner.search.mesh_options import Mode, legal_degrees, rule_values
from flagscale.planner.search.mesh_search import search
from flagscale.planner.search.plans import Found, best_plans, broken_rules, searched_space
from flagscale.planner.training import Block, Numerics, Training
from flagscale_testing.every_plan import best_of_all, every_split, random_space

FAST = Chip("fast", {"bfloat16": 900e12}, 80e9, 3e12, Link(400e9), Link(50e9), 8)
SLOW = Chip("slow", {"bfloat16": 300e12}, 40e9, 1.5e12, Link(200e9), Link(25e9), 8)
LLAMA = ModelShape(
    hidden=4096,
    heads=32,
    groups=8,
    head_dim=128,
    ffn=14336,
    vocabulary=32000,
    experts_in=(False,) * 32,
    attention="gqa",
    gated=True,
)
MIXTURE = replace(LLAMA, experts_in=(False,) + (True,) * 15, experts=8, topk=2, expert_ffn=4096)
TWO = Cluster((Pool("H800", FAST, 1, 8), Pool("A800", SLOW, 1, 8)))


def training(model: ModelShape = LLAMA, **changes: object) -> Training:
    one = HeteroLayout((Mesh(layers=((model.layers,),)),))
    template = Training(model, one, (Block(FAST, 1),), 4096, 64, 32000, numerics=Numerics(distributed=True))
    return replace(template, **changes)


QUICK = (1, 2, 4, 5, 8, 10, 14, 15, 18, 21, 22, 28, 31, 32, 35)
"""Of the 200 clusters of `python -m benchmarks.plan_search`, some that take little time; in the last one, the
dynamic program alone is 0.7 % off."""


@pytest.mark.parametrize("seed", QUICK)
def test_the_search_finds_what_rating_every_plan_finds(seed: int) -> None:
    space = random_space(seed)
    best, _ = search(space)
    expected, _ = best_of_all(space)
    assert best.seconds == pytest.approx(expected.seconds if expected else float("inf"), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_the_search_finds_the_optimum_of_more_clusters(seed: int) -> None:
    test_the_search_finds_what_rating_every_plan_finds(seed)


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("room", [30.0, 60.0, 1e9])
def test_the_best_split_is_the_best_of_all(room: float, chunks: int) -> None:
    fast = LayerCosts(1.0, 0.4, 3.0, 1.5, 0.2, 1.0, 0.1, 0.5, 4.0, 2.0, 5.0, room)
    slow = fast._replace(seconds=1.7, recompute=0.6, kept=2.5)
    one = MeshDegrees(1, 1, 1, 1, 1, 1)
    parts = (Part(0, one, fast, 2), Part(1, one, slow, 2))
    pipeline = Pipeline(parts, 8, (0.2,), chunks)
    every = [one for layers in every_split(10, 4, chunks) if (one := rated(pipeline, layers))]
    expected = min((one.seconds for one in every), default=None)
    found = best_split(pipeline, 10)
    assert (found.seconds if found else None) == pytest.approx(expected)
    if found:
        again = rated(pipeline, found.layers)
        assert again
        assert again.seconds == pytest.approx(expected)
        assert again.recomputed == found.recomputed


@pytest.fixture(scope="module")
def mixed() -> Found:
    return best_plans(training(), TWO)


def test_both_types_take_part_and_the_fast_one_has_more_layers(mixed: Found) -> None:
    layers = {mesh.type: sum(map(sum, mesh.layers)) for mesh in mixed.best.training.layout.meshes}
    assert layers["H800"] > layers["A800"] > 0
    assert mixed.best.seconds == min(plan.seconds for plan in mixed.plans)


@pytest.mark.parametrize("model", [LLAMA, MIXTURE, replace(LLAMA, prediction_heads=1, tied=True)])
@pytest.mark.parametrize("cluster", [TWO, Cluster((Pool("H800", FAST, 2, 8),))])
def test_every_plan_is_legal_and_fits(model: ModelShape, cluster: Cluster) -> None:
    template = training(model)
    for plan in best_plans(template, cluster).plans:
        values = rule_values(template)
        assert not broken_rules(plan.training, plan.arguments, values)
        of = plan.training
        assert len({b.micro_batch * m.dp for b, m in zip(of.blocks, of.layout.meshes, strict=True)}) == 1
        assert sum(stage.layers for stage in of.layout.stages) == model.layers
        for stage in memory(of):
            chip = of.blocks[of.layout.stages[stage.stage].mesh].chip
            assert stage.device <= chip.memory_bytes


def test_what_was_considered_names_the_runner_up_and_its_loss(mixed: Found) -> None:
    text = " ".join(mixed.considered)
    assert "On 8 H800, 8 A800" in text
    assert "The runner-up" in text
    assert "% longer" in text


def test_modules_that_no_table_has_are_not_recomputed() -> None:
    template = training(MIXTURE, implementation="torch")
    assert {mode.modules for mode in searched_space(template, TWO).legal} == {()}


@pytest.mark.parametrize(("layers", "batch"), [(1, 8), (8, 1), (8, 7), (8, 2**20)])
def test_odd_sizes_have_plans(layers: int, batch: int) -> None:
    model = replace(LLAMA, experts_in=(False,) * layers)
    best = best_plans(training(model, batch=batch), TWO).best.training
    assert sum(stage.layers for stage in best.layout.stages) == layers
    assert best.micro_batches * best.blocks[0].micro_batch * best.layout.meshes[0].dp == batch


def test_chips_that_only_slow_the_others_stay_idle() -> None:
    snail = replace(SLOW, flop_s={"bfloat16": 1e12}, memory_bytes=4e9)
    found = best_plans(training(), Cluster((Pool("H800", FAST, 1, 8), Pool("A800", snail, 1, 8))))
    assert [mesh.type for mesh in found.best.training.layout.meshes] == ["H800"]
    assert "Idle: 8 A800." in found.considered


def test_prediction_heads_are_kept_on_one_type() -> None:
    found = best_plans(training(replace(LLAMA, prediction_heads=1)), TWO)
    assert all(len(plan.training.layout.meshes) == 1 for plan in found.plans)
    assert "mtp_num_layers" in found.considered[0]


def test_messages_through_hosts_are_planned_as_such() -> None:
    slow = Route(Link(1e9), through_host=True)
    cluster = replace(TWO, routes={frozenset(("H800", "A800")): slow})
    plans = [plan for plan in best_plans(training(), cluster).plans if len(plan.training.layout.meshes) > 1]
    assert all(plan.arguments["hetero_use_cpu_communication"] for plan in plans)
    direct = best_plans(training(), TWO).best
    assert all(plan.seconds > direct.seconds for plan in plans)


def test_meshes_stay_inside_hosts_and_experts_are_divided_evenly() -> None:
    template = training(MIXTURE)
    pool = Pool("H800", FAST, 2, 4)
    legal = legal_degrees(template, rule_values(template), pool, Mode(expert_tp=1))
    assert legal
    for one in legal:
        assert 4 % one.tp == 0
        assert 8 % one.ep == 0
        assert one.per_stage % one.ep == 0


def test_a_type_without_links_between_hosts_is_used_on_one_host_or_left_out() -> None:
    lone = replace(FAST, outside=Link(), per_node=4)
    both = Cluster((Pool("A800", SLOW, 1, 8), Pool("NEW", lone, 2, 8)))
    found = best_plans(training(), both)
    alone = best_plans(training(), Cluster((Pool("NEW", lone, 1, 4),)))
    others = best_plans(training(), Cluster((Pool("A800", SLOW, 1, 8),)))
    assert found.best.seconds == min(alone.best.seconds, others.best.seconds)
    assert found.considered[-1].startswith("NEW was planned for one host alone, with 4 of its devices: ")
    assert found.estimated == alone.estimated + others.estimated
    # One host needs no link to others, and a link to another type counts.
    assert best_plans(training(), Cluster((Pool("NEW", lone, 1, 4),))).considered == alone.considered
    linked = replace(both, routes={frozenset(("A800", "NEW")): Route(Link(25e9))})
    assert [len(one.pools) for one, _ in linked.linked()] == [2]
    unknown = Cluster((TWO.pools[1], Pool("NEW", replace(lone, flop_s={}), 1, 4)))
    said = best_plans(training(), unknown).considered[-1]
    assert said.startswith("There is no plan for NEW alone: the peak of chip `fast` in bfloat16 is not known")


def test_without_any_link_there_is_a_plan_all_the_same() -> None:
    """In float32 with `torch` layers the table of memory has no recomputed modules, too."""
    lone = replace(FAST, outside=Link(), flop_s={"float32": 90e12, **FAST.flop_s})
    ((one, note),) = Cluster((Pool("", lone, 4, 8),)).linked()
    assert [(pool.hosts, pool.per_host) for pool in one.pools] == [(1, 8)]
    assert note
    small = replace(LLAMA, experts_in=(False,) * 4)
    single = training(small, implementation="torch", numerics=Numerics("float32", 4, 4, 8))
    assert best_plans(single, Cluster((Pool("", lone, 4, 8),))).best.training.layout.world_size <= 8


MISTAKES = {
    "no devices": (training(), Cluster(()), "the cluster has no devices"),
    "a type twice": (
        training(),
        Cluster((Pool("H800", FAST, 1, 8), Pool("H800", FAST, 1, 4))),
        "the type `H800` has 2 pools",
    ),
    "no batch": (training(batch=0), TWO, "a step needs a batch of at least 1 sample, not 0"),
    "no memory": (
        training(),
        Cluster((Pool("A800", replace(SLOW, memory_bytes=16e9), 1, 2),)),
        "short of",
    ),
    "no degrees": (
        training(replace(LLAMA, heads=32, groups=5)),
        TWO,
        "num_query_groups 5 must divide num_attention_heads 32",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_has_one_clear_message(name: str) -> None:
    template, cluster, says = MISTAKES[name]
    with pytest.raises(UserError) as caught:
        best_plans(template, cluster)
    assert len(caught.value.messages) == 1
    assert says in str(caught.value)


def test_a_shortage_names_its_size_and_its_largest_part() -> None:
    with pytest.raises(UserError, match=r"short of [0-9.]+ GiB per slow .*its largest part is \w+") as caught:
        best_plans(training(), Cluster((Pool("A800", replace(SLOW, memory_bytes=16e9), 1, 2),)))
    assert "up to 64 stages" in str(caught.value)
