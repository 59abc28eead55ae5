"""Heterogeneous layouts: how they are read, what each rank gets, and one message per wrong layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flagscale.checks.hetero.keys import read
from flagscale.checks.hetero.layout import AXES, EXPERT_AXES, HeteroLayout, Mesh, RankPosition, groups
from flagscale.config.schema import Commands, Environment, Experiment, Runner, Task
from flagscale.config.source_map import SourceMap
from flagscale.engines.megatron.adapter import MEGATRON
from flagscale.errors import UserError
from flagscale.values import Host, Job
from tests.unit.conftest import TASK

Build = Callable[..., Job]
Refused = Callable[..., list[str]]

FLAT = [2, 1, 1, 1, 1, 1, 1, 1, 2, 1]
THREE = [2, 1, 1, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 2, 1]


def layout(**given: Any) -> HeteroLayout:
    found, wrong = read({f"hetero_{name}": value for name, value in given.items()}, 4)
    assert found is not None, wrong
    return found


def test_both_forms_give_the_same_layout() -> None:
    flat = layout(process_meshes=FLAT, pipeline_layer_split=[3, 1], device_types=["A800", "BI150"])
    named = layout(
        process_meshes=[{"type": "A800", "tp": 2, "layers": [3]}, {"type": "BI150", "dp": 2, "layers": [1]}]
    )
    assert flat == named
    assert str(flat) == "tp2 | dp2"
    assert HeteroLayout.from_json(flat.to_json()) == flat
    with pytest.raises(ValueError, match="not a layout"):
        HeteroLayout.from_json('{"meshes": [{"tp": 2}]}')


def test_micro_batches_ahead() -> None:
    """One for each later stage, and the extra ones for each later boundary between meshes."""
    three = [{"pp": 2, "layers": [1, 1]}, {"layers": [1]}, {"layers": [1]}]
    plain = layout(process_meshes=three, extra_micro_batches=0)
    assert plain.warm_ups == (3, 2, 1, 0)
    assert layout(process_meshes=three).warm_ups == (5, 4, 2, 0)
    most = layout(process_meshes=three, extra_micro_batches=3)
    assert most.warm_ups == (9, 8, 4, 0)
    assert HeteroLayout.from_json(most.to_json()) == most


def test_positions_and_arguments() -> None:
    meshes = layout(process_meshes=[1, 2, 1, 2, 1, 2, 1, 1, 1, 2], pipeline_layer_split=[2, 1, 1])
    assert [list(meshes.ranks(number)) for number in (0, 1)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert meshes.position(3) == RankPosition(mesh=0, stage=0, tp=0, cp=1, dp=1)
    assert meshes.position(6) == RankPosition(mesh=1, stage=2, tp=0, cp=0, dp=0)
    with pytest.raises(ValueError, match="not a rank 8"):
        meshes.position(8)
    values = {"micro_batch_size": 2, "make_vocab_size_divisible_by": 128, "sequence_parallel": True}
    assert meshes.arguments(values, 0) == {
        "tensor_model_parallel_size": 1,
        "context_parallel_size": 2,
        "expert_model_parallel_size": 1,
        "pipeline_model_parallel_size": 3,
        "pipeline_model_parallel_layout": "Ett|t|tL",
        "sequence_parallel": False,
        "make_vocab_size_divisible_by": 256,
        "micro_batch_size": 2,
    }
    second = meshes.arguments(values, 1)
    assert second["micro_batch_size"] == 4
    assert second["make_vocab_size_divisible_by"] == 128
    assert second["sequence_parallel"] is True
    assert [meshes.engine_world_size(number) for number in (0, 1)] == [12, 6]


@pytest.mark.parametrize(
    "given",
    [
        {"hetero_pipeline_layer_split": [4, 2], "num_virtual_stages_per_pipeline_rank": 2},
        {"hetero_pipeline_layer_split": [[2, 2], 2], "num_virtual_stages_per_pipeline_rank": 2},
        {"hetero_pipeline_layer_split": [[2, 2], [1, 1]]},
        {"hetero_process_meshes": [{"tp": 2, "layers": [[2, 2]]}, {"dp": 2, "layers": [2]}]},
    ],
)
def test_chunks_of_an_interleaved_pipeline(given: dict[str, Any]) -> None:
    meshes, wrong = read({"hetero_process_meshes": FLAT, **given}, 6)
    assert meshes is not None, wrong
    assert [mesh.layers for mesh in meshes.meshes] == [((2, 2),), ((1, 1),)]
    assert meshes.chunks == 2
    assert meshes.pipeline_layout == "Ett|t|tt|tL"
    assert [(source.index, target.index) for source, target in meshes.boundaries] == [(0, 1), (1, 0)]
    assert HeteroLayout.from_json(meshes.to_json()) == meshes


def test_chunks_given_by_their_layers() -> None:
    given = {"hetero_process_meshes": FLAT, "num_layers_per_virtual_pipeline_stage": 2}
    meshes, wrong = read(given, 8)
    assert meshes is not None, wrong
    assert [mesh.layers for mesh in meshes.meshes] == [((2, 2),), ((2, 2),)]


def test_the_picture_of_an_interleaved_pipeline(build: Build) -> None:
    split = {"hetero_pipeline_layer_split": [[2, 1], 2], "num_virtual_stages_per_pipeline_rank": 2}
    job = build({"hetero_process_meshes": FLAT, **split, "num_layers": 5}, ranks=4)
    assert not [word for word in job.role.argv if "virtual" in word], "it is part of the layout"
    lines = job.picture.splitlines()
    assert "  0     any   0-1    2   1   1   1   1   2/1     2" in lines
    assert lines[-5:] == [
        "  stage 0  mesh 0  2/1 layers  [0 1]",
        "           0 > 2, 1 > 3",
        "  stage 1  mesh 1  1/1 layers  [2] [3]",
        "           2 > 0 1, 3 > 0 1",
        "  from the last stage back to the first, for the next of 2 chunks",
    ]


def test_groups_are_those_of_megatron() -> None:
    sizes = dict(zip(AXES, (2, 1, 2, 2), strict=True))
    assert list(groups(10, sizes, ["tp"])) == [(10, 11), (12, 13), (14, 15), (16, 17)]
    assert list(groups(0, sizes, ["cp", "dp"])) == [(0, 2), (1, 3), (4, 6), (5, 7)]
    experts = dict(zip(EXPERT_AXES, (1, 2, 2, 1), strict=True))
    assert list(groups(4, experts, ["ep"])) == [(4, 5), (6, 7)]
    assert list(groups(4, experts, ["edp"])) == [(4, 6), (5, 7)]


def test_the_job(build: Build) -> None:
    job = build({"hetero": {"enable_hetero": True, "hetero_process_meshes": THREE}, "num_layers": 6}, ranks=8)
    assert job.layout == "tp2 | tp2 x dp2 | dp2"
    argv = job.role.argv
    sent = HeteroLayout.from_json(argv[argv.index("--hetero-layout") + 1])
    assert [mesh.layers for mesh in sent.meshes] == [((2,),), ((2,),), ((2,),)]
    assert not [word for word in argv if word.startswith("--hetero-process")]
    assert "  1     any   2-5    2   1   1   2   1   2       1" in job.picture.splitlines()
    assert "           0 > 2 4, 1 > 3 5" in job.picture.splitlines()


def test_the_keys_have_no_effect_if_meshes_are_off(build: Build) -> None:
    job = build({"enable_hetero": False, "hetero_process_meshes": FLAT, "hetero_current_device_type": "A"})
    assert job.layout == "one rank"
    assert job.picture == ""
    assert len(job.notices) == 2
    assert all("heterogeneous meshes are off" in notice for notice in job.notices)


def test_ignored_keys_are_reported(build: Build) -> None:
    changes = {
        "hetero_process_meshes": FLAT,
        "hetero_current_device_type": "A800",
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
    }
    job = build(changes, ranks=4)
    assert len(job.notices) == 2
    assert "the hostfile gives the type" in job.notices[0]
    assert "ignored because `hetero_process_meshes` sets it" in job.notices[1]


def on_hosts(types: list[str], changes: dict[str, Any]) -> Job:
    experiment = Experiment(
        name="demo",
        exp_dir="/run",
        task=Task(backend="megatron", entrypoint="megatron.flagscale.train_gpt"),
        runner=Runner(),
        envs=Environment(),
        cmds=Commands(),
        arguments={**TASK, **changes},
    )
    hosts = tuple(Host(rank, f"h{rank}", 2, kind) for rank, kind in enumerate(types))
    return MEGATRON.build(experiment, hosts, SourceMap())


TYPED = {"hetero_process_meshes": FLAT, "hetero_device_types": ["A800", "H800"]}


def test_the_hostfile_gives_types() -> None:
    assert on_hosts(["A800", "H800"], TYPED).world_size == 4
    with pytest.raises(
        UserError, match="mesh 0 is for type A800, but ranks 0 to 1 include hosts of type H800"
    ):
        on_hosts(["H800", "A800"], TYPED)
    with pytest.raises(UserError, match="cannot have ranks on host processors"):
        on_hosts(["cpu", "H800"], {"hetero_process_meshes": FLAT})


MOE = {"num_experts": 4, "moe_ffn_hidden_size": 64, "disable_bias_linear": True}

UNSUPPORTED: dict[str, Any] = {
    "account_for_embedding_in_pipeline_split": True,
    "account_for_loss_in_pipeline_split": True,
    "decoder_last_pipeline_num_layers": 1,
    "use_megatron_fsdp": True,
    "use_torch_fsdp2": True,
    "num_distributed_optimizer_instances": 2,
    "hierarchical_context_parallel_sizes": [1, 2],
    "nccl_communicator_config_path": "nccl.yaml",
    "use_sharp": True,
    "high_priority_stream_groups": ["tp"],
    "log_params_norm": True,
    "data_parallel_random_init": True,
    "flight_recorder_dump_path": "recorded",
}

WRONG: list[tuple[int, dict[str, Any], str]] = [
    *(
        (4, {name: value}, f"`{name}` is not supported with `hetero_process_meshes`")
        for name, value in UNSUPPORTED.items()
    ),
    (4, {"cp_comm_type": "a2a+p2p"}, "`cp_comm_type: a2a+p2p` is not supported with `hetero_process_meshes`"),
    (4, {"hetero_process_meshes": None, "enable_hetero": True}, "`hetero_process_meshes` is required"),
    (4, {"hetero_process_meshes": []}, "`hetero_process_meshes` is required"),
    (4, {"enable_hetero": "yes"}, "`enable_hetero` must be true or false, not 'yes'"),
    (4, {"hetero_use_cpu_communication": 1}, "`hetero_use_cpu_communication` must be true or false"),
    (
        4,
        {"dataloader_type": "cyclic"},
        "draws other samples for each dp, and meshes that read data have dp 1",
    ),
    (4, {"tp_comm_overlap": True, "sequence_parallel": True}, "is not supported with meshes of unequal tp"),
    (4, {"cuda_graph_impl": "transformer_engine"}, "it captures the order of a pipeline in one group"),
    (4, {"use_mp_args_from_checkpoint_args": True}, "would give all meshes the degrees of the first rank"),
    (4, {"pipeline_model_parallel_comm_backend": "ucc"}, "and does not read it"),
    (4, {"create_all_gather_group": True}, "and does not read it"),
    (
        4,
        {"optimizer": "muon", "use_distributed_optimizer": True},
        "and its gradient norm covers one mesh only: use adam or sgd",
    ),
    (4, {"optimizer": "dist_muon"}, "and its gradient norm covers one mesh only: use adam or sgd"),
    (
        4,
        {"hetero_extra_micro_batches": -1},
        "`hetero_extra_micro_batches` must be a whole number of at least 0",
    ),
    (
        4,
        {"hetero_extra_micro_batches": True},
        "`hetero_extra_micro_batches` must be a whole number of at least 0",
    ),
    (
        4,
        {"hetero_extra_micro_batches": 1, "num_virtual_stages_per_pipeline_rank": 2},
        "an interleaved pipeline has its own order and cannot be combined with `hetero_extra_micro_batches`",
    ),
    (4, {"hetero_process_meshes": FLAT[:-1]}, "has 9 numbers, not a multiple of 5"),
    (4, {"hetero_process_meshes": [2, 1, 1, 1, 0, *FLAT[5:]]}, ", not 0"),
    (4, {"hetero_process_meshes": [2, 1, 1, 1, 1.5, *FLAT[5:]]}, ", not 1.5"),
    (4, {"hetero_process_meshes": [{"tp": 2}, 3]}, "not {'tp': 2}"),
    (4, {"hetero_process_meshes": [{"tp": 2}, {"ddp": 2}]}, "mesh 1: unknown name `ddp`; valid: tp, cp"),
    (
        4,
        {"hetero_process_meshes": [{"tp": 0}, {"dp": 2}]},
        "mesh 0: `tp` must be a whole number of at least 1, not 0",
    ),
    (
        4,
        {"hetero_process_meshes": [{"tp": 2, "layers": 3}, {}]},
        "mesh 0: `layers` must be a list of whole numbers",
    ),
    (
        4,
        {"hetero_process_meshes": [{"tp": 2, "type": 3}, {}]},
        "mesh 0: `type` must be a name in the hostfile",
    ),
    (
        4,
        {"hetero_process_meshes": [{"tp": 2, "sp": "on"}, {}]},
        "`sp` (sequence parallel) must be true or false",
    ),
    (
        4,
        {"hetero_process_meshes": [{"tp": 2, "layers": [3]}, {"dp": 2}]},
        "mesh 1: `layers` has 0 numbers for 1",
    ),
    (4, {"hetero_process_meshes": FLAT[:5]}, "the meshes have 2 ranks, but the job has 4"),
    (
        2,
        {"hetero_process_meshes": [1, 1, 1, 1, 2], "pipeline_model_parallel_size": 4},
        "4 is not the sum of all meshes' pp (2 = 2)",
    ),
    (
        2,
        {"hetero_process_meshes": [1, 1, 1, 1, 2], "hetero_pipeline_layer_split": [3, 2]},
        "the stages have 3+2 = 5 layers, but num_layers is 4",
    ),
    (
        2,
        {"hetero_process_meshes": [1, 1, 1, 1, 2], "hetero_pipeline_layer_split": [3, 1]}
        | {"pipeline_model_parallel_layout": "Et|tttL"},
        "sets the same argument as `hetero_process_meshes`",
    ),
    (2, {"hetero_process_meshes": [3, 1, 1, 1, 1], "num_attention_heads": 4}, "have 3 ranks, but the job"),
    (8, {}, "the meshes have 2 + 2 = 4 ranks, but the job has 8"),
    (4, {"num_layers": 5}, "num_layers 5 cannot be divided evenly between 2 stages"),
    (4, {"hetero_pipeline_layer_split": [2, 1]}, "the stages have 2+1 = 3 layers, but num_layers is 4"),
    (4, {"hetero_pipeline_layer_split": [2, 1, 1]}, "has 3 numbers for 2 stages"),
    (4, {"hetero_pipeline_layer_split": [4, 0]}, "(or a list of them, one per model chunk), not [4, 0]"),
    (
        4,
        {"hetero_process_meshes": [{"tp": 2, "layers": [2]}, {"dp": 2, "layers": [2]}]}
        | {"hetero_pipeline_layer_split": [2, 2]},
        "give the layers in `hetero_pipeline_layer_split` or in `hetero_process_meshes`, not in both",
    ),
    (4, {"hetero_device_types": ["A800"]}, "names 1 types for 2 meshes"),
    (
        4,
        {"hetero_device_types": "A800"},
        "`hetero_device_types` must be a list of names, one per mesh, not 'A800'",
    ),
    (4, {"pipeline_model_parallel_size": 3}, "3 is not the sum of all meshes' pp (1 + 1 = 2)"),
    (
        4,
        {"micro_batch_size": 1},
        "micro_batch_size 1 x dp 1 of mesh 0 = 1 samples per step, not a multiple of dp 2",
    ),
    (4, {"global_batch_size": 7}, "global_batch_size 7 must be a multiple of 2"),
    (
        9,
        {"hetero_process_meshes": [8, 1, 1, 1, 1, 1, 1, 1, 1, 1]},
        "num_attention_heads 4 must be a multiple of 8",
    ),
    (
        4,
        {"hetero_process_meshes": [1, 1, 1, 2, 1, 1, 2, 1, 1, 1], "seq_length": 62},
        "must be a multiple of 4",
    ),
    (
        4,
        {"hetero_process_meshes": [1, 1, 2, 2, 1, 1, 1, 1, 2, 1]},
        "expert_model_parallel_size > 1 needs num_exp",
    ),
    (
        4,
        {"hetero_process_meshes": [1, 1, 3, 2, 1, 1, 1, 1, 2, 1]} | MOE,
        "num_experts 4 must be a multiple of 3",
    ),
    (4, {"num_virtual_stages_per_pipeline_rank": 0}, "must be a whole number of at least 1, not 0"),
    (4, {"num_virtual_stages_per_pipeline_rank": "two"}, "must be a whole number of at least 1, not 'two'"),
    (
        4,
        {"num_virtual_stages_per_pipeline_rank": 2, "num_layers_per_virtual_pipeline_stage": 1},
        "num_layers_per_virtual_pipeline_stage cannot be combined",
    ),
    (
        4,
        {"num_virtual_stages_per_pipeline_rank": 3},
        "stage 0: 2 layers cannot be divided evenly between 3 model",
    ),
    (
        4,
        {"num_layers_per_virtual_pipeline_stage": 1, "hetero_pipeline_layer_split": [3, 1]},
        "all stages must have the same number of model chunks, not 1 and 3",
    ),
    (
        4,
        {"num_layers_per_virtual_pipeline_stage": 2, "hetero_pipeline_layer_split": [3, 3], "num_layers": 6},
        "stage 0: 3 layers cannot be divided evenly between 1 model chunks",
    ),
    (
        4,
        {"hetero_pipeline_layer_split": [[1, 1], [1, 1]], "num_virtual_stages_per_pipeline_rank": 3},
        "all stages must have the same number of model chunks, not 2 and 3",
    ),
    (
        4,
        {"hetero_pipeline_layer_split": [[1, 1], [2]]},
        "all stages must have the same number of model chunks, not 1 and 2",
    ),
    (
        4,
        {"hetero_pipeline_layer_split": [[2, 0], [1, 1]]},
        "(or a list of them, one per model chunk), not [[2, 0]",
    ),
    (
        4,
        {"num_virtual_stages_per_pipeline_rank": 2, "global_batch_size": 6},
        "an interleaved pipeline needs a multiple of 2 micro-batches per step, not 3",
    ),
    (
        4,
        {"num_virtual_stages_per_pipeline_rank": 2, "microbatch_group_size_per_virtual_pipeline_stage": 3}
        | {"global_batch_size": 8},
        "an interleaved pipeline needs a multiple of 3 micro-batches per step, not 4",
    ),
    (
        4,
        {"num_virtual_stages_per_pipeline_rank": 2, "overlap_p2p_comm": False},
        "an interleaved pipeline of 2 stages needs overlap_p2p_comm: true",
    ),
    (4, {"overlap_moe_expert_parallel_comm": True}, "its schedule does not support meshes"),
    (4, {"pipeline_model_parallel_layout": "Et|tttL"}, "the layers of stages are given by `hetero_pipe"),
    (4, {"decoder_first_pipeline_num_layers": 1}, "the layers of stages are given by"),
    (4, {"ckpt_format": "torch"}, "needs `ckpt_format: torch_dist`"),
    (4, {"log_num_zeros_in_grad": True}, "it sums over one mesh only"),
    (4, {"mtp_num_layers": 1}, "the layout has no place for the layers of multi-token prediction"),
    (
        4,
        {"use_tp_pp_dp_mapping": True},
        "FlagScale creates the process groups of meshes and does not read it",
    ),
    (4, {"use_distributed_optimizer": True, "overlap_grad_reduce": True}, "tied embeddings on two meshes"),
]


@pytest.mark.parametrize(("ranks", "changes", "message"), WRONG)
def test_wrong_layouts(refused: Refused, ranks: int, changes: dict[str, Any], message: str) -> None:
    reported = refused({"hetero_process_meshes": FLAT, **changes}, ranks=ranks)
    assert [line for line in reported if message in line], reported
    assert len(reported) == 1 or message in " ".join(reported)


def test_an_argument_that_meshes_do_not_support_is_reported_once(refused: Refused) -> None:
    heads = {"mtp_num_layers": 1, "position_embedding_type": "rope"}
    (reported,) = refused({"hetero_process_meshes": FLAT, **heads}, ranks=4)
    assert "`mtp_num_layers` is not supported with `hetero_process_meshes`" in reported


def test_all_mistakes_at_once(refused: Refused) -> None:
    reported = refused(
        {"hetero_process_meshes": FLAT, "log_params_norm": True, "hetero_pipeline_layer_split": [1, 1]},
        ranks=8,
    )
    assert len(reported) == 3, reported


def test_the_argument_of_workers_is_not_for_users(refused: Refused) -> None:
    (reported,) = refused({"hetero_layout": "{}"})
    assert "use `hetero_process_meshes`" in reported


def test_a_rule_that_every_mesh_breaks_is_reported_once(refused: Refused) -> None:
    reported = refused(
        {"hetero_process_meshes": FLAT, "num_query_groups": 3, "group_query_attention": True}, ranks=4
    )
    assert reported[0] == "train.num_query_groups: num_query_groups 3 must divide num_attention_heads 4"


def test_a_single_mesh_is_an_ordinary_layout(build: Build) -> None:
    """It is as if the degrees themselves were given: features that need equal ranks are allowed."""
    keys = {"hetero_process_meshes": [2, 1, 1, 1, 2], "num_layers": 4, "log_params_norm": True}
    ordinary = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "num_layers": 4}
    job, expected = build(keys, ranks=4), build({**ordinary, "log_params_norm": True}, ranks=4)
    ones = ["--context-parallel-size", "1", "--expert-model-parallel-size", "1"]
    assert sorted(job.role.argv) == sorted([*expected.role.argv, *ones])
    assert (job.layout, job.picture) == ("tp2 x pp2", "")
    (notice,) = job.notices
    assert notice == "train.hetero_process_meshes: is now an ordinary layout: tp2 x pp2"


@pytest.mark.parametrize(
    ("meshes", "more", "expected"),
    [
        ([1, 1, 1, 1, 2], {"hetero_pipeline_layer_split": [3, 1]}, {"layout": "Ettt|tL"}),
        ([1, 1, 1, 1, 2], {"hetero_pipeline_layer_split": [2, 2]}, {}),
        ([{"pp": 2, "layers": [3, 1]}], {}, {"layout": "Ettt|tL"}),
        ([1, 1, 1, 1, 2], {"num_virtual_stages_per_pipeline_rank": 2}, {"chunks": "2"}),
        ([1, 1, 1, 1, 2], {"num_layers_per_virtual_pipeline_stage": 1}, {"chunks": "2"}),
        ([{"pp": 2, "layers": [[2, 1], [1, 2]]}], {"num_layers": 6}, {"layout": "Ett|t|t|ttL"}),
        ([1, 1, 1, 1, 2], {"pipeline_model_parallel_layout": "Et|tttL"}, {"layout": "Et|tttL"}),
    ],
)
def test_the_layers_of_a_single_mesh(
    build: Build, meshes: list[Any], more: dict[str, Any], expected: dict[str, str]
) -> None:
    argv = build({"hetero_process_meshes": meshes, **more, "global_batch_size": 8}, ranks=2).role.argv
    options = {
        "layout": "--pipeline-model-parallel-layout",
        "chunks": "--num-virtual-stages-per-pipeline-rank",
    }
    given = {name: argv[argv.index(option) + 1] for name, option in options.items() if option in argv}
    assert given == expected
    assert argv[argv.index("--pipeline-model-parallel-size") + 1] == "2"


def test_what_a_single_mesh_makes_useless_is_a_notice(build: Build) -> None:
    keys = {
        "hetero_process_meshes": [{"tp": 2, "sp": True, "type": "A800"}],
        "hetero_use_cpu_communication": True,
        "hetero_current_device_type": "A800",
        "hetero_extra_micro_batches": 1,
        "tensor_model_parallel_size": 4,
        "sequence_parallel": False,
    }
    job = build(keys, ranks=2)
    assert "--sequence-parallel" in job.role.argv
    notices = {notice.partition(":")[0]: notice.partition(": ")[2] for notice in job.notices}
    assert notices == {
        "train.tensor_model_parallel_size": "ignored because `hetero_process_meshes` sets it",
        "train.sequence_parallel": "ignored because `hetero_process_meshes` sets it",
        "train.hetero_use_cpu_communication": "ignored because there is only one mesh",
        "train.hetero_extra_micro_batches": "ignored because there is only one mesh",
        "train.hetero_current_device_type": "dropped because the hostfile gives the type of each host",
        "train.hetero_process_meshes": "is now an ordinary layout: tp2",
    }


def test_one_mesh_alone() -> None:
    assert Mesh().ranks == 1
    assert str(Mesh()) == "1 rank"
