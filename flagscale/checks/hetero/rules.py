"""The rules of a heterogeneous layout: sums, divisibility, hosts, and arguments that are not supported."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from flagscale.checks.context import NESTED
from flagscale.checks.degrees import violations
from flagscale.checks.hetero.keys import MESHES, SPLIT
from flagscale.checks.hetero.layout import HeteroLayout
from flagscale.checks.pipeline import layout_violations
from flagscale.errors import Violation

_OWN_GROUPS = "FlagScale creates the process groups of meshes and does not read it"
_CUT = "the layers of stages are given by `hetero_pipeline_layer_split`"
_SPANS = "it sums over one mesh only, and would report a wrong number"

UNSUPPORTED: Mapping[str, tuple[Any, str]] = {
    "pipeline_model_parallel_layout": (None, _CUT),
    "decoder_first_pipeline_num_layers": (None, _CUT),
    "decoder_last_pipeline_num_layers": (None, _CUT),
    "account_for_embedding_in_pipeline_split": (False, _CUT),
    "account_for_loss_in_pipeline_split": (False, _CUT),
    "mtp_num_layers": (None, "the layout has no place for the layers of multi-token prediction"),
    "use_megatron_fsdp": (False, "sharded data parallel supports one mesh only"),
    "use_torch_fsdp2": (False, "sharded data parallel supports one mesh only"),
    "num_distributed_optimizer_instances": (1, "the optimizer is sharded inside each mesh"),
    "hierarchical_context_parallel_sizes": (None, _OWN_GROUPS),
    "use_tp_pp_dp_mapping": (False, _OWN_GROUPS),
    "nccl_communicator_config_path": (None, _OWN_GROUPS),
    "use_sharp": (False, _OWN_GROUPS),
    "high_priority_stream_groups": (None, _OWN_GROUPS),
    "log_num_zeros_in_grad": (False, _SPANS),
    "log_params_norm": (False, _SPANS),
    "overlap_moe_expert_parallel_comm": (False, "its schedule does not support meshes"),
    "data_parallel_random_init": (False, "all copies of a layer start from the same weights"),
    "pipeline_model_parallel_comm_backend": (None, _OWN_GROUPS),
    "create_all_gather_group": (False, _OWN_GROUPS),
    "flight_recorder_dump_path": (None, _OWN_GROUPS),
    "use_mp_args_from_checkpoint_args": (False, "it would give all meshes the degrees of the first rank"),
}
"""By dest: the value that has no effect, and why any other value is refused."""


def mesh_violations(
    layout: HeteroLayout, values: Mapping[str, Any], world_size: int, given: Sequence[str] = ()
) -> Iterator[Violation]:
    """Yield every rule that a layout breaks; `values` are the arguments by dest, as given for all meshes.

    `given`: the arguments (by dest) that the user wrote.
    """
    yield from shape_violations(layout, values, world_size, given)
    yield from _unsupported(values)
    if values.get("tp_comm_overlap") and len({mesh.tp for mesh in layout.meshes}) > 1:
        yield (
            "tp_comm_overlap",
            "`tp_comm_overlap` is not supported with meshes of unequal tp: all share one buffer size",
        )
    yield from _data_violations(layout, values)
    if wrong := list(_batch_violations(layout, values)):
        yield from wrong
        return
    yield from _violations_of_each(layout, values)


def shape_violations(
    layout: HeteroLayout, values: Mapping[str, Any], world_size: int, given: Sequence[str]
) -> Iterator[Violation]:
    """Yield the sums of ranks, layers and stages that are wrong, also those of a single mesh."""
    if layout.world_size != world_size:
        sizes = " + ".join(str(mesh.ranks) for mesh in layout.meshes)
        size = f"{sizes} = {layout.world_size}" if len(layout.meshes) > 1 else sizes
        what = f"the meshes have {size} ranks, but the job has {world_size}"
        yield MESHES, f"{what} (hosts x nproc_per_node)"
    stages, layers = layout.stages, values.get("num_layers")
    total = sum(stage.layers for stage in stages)
    if isinstance(layers, int) and total != layers:
        sizes = "+".join(str(stage.layers) for stage in stages)
        yield SPLIT, f"the stages have {sizes} = {total} layers, but num_layers is {layers}"
    name = "pipeline_model_parallel_size"
    if name in given and values[name] != len(stages):
        sizes = " + ".join(str(mesh.pp) for mesh in layout.meshes)
        yield name, f"{name} {values[name]} is not the sum of all meshes' pp ({sizes} = {len(stages)})"


def _unsupported(values: Mapping[str, Any]) -> Iterator[Violation]:
    for name, (neutral, why) in UNSUPPORTED.items():
        if (value := values.get(name)) and value != neutral:
            yield name, f"`{name}` is not supported with `{MESHES}`: {why}"
    if NESTED in (values.get("cp_comm_type") or ()):
        what = f"`cp_comm_type: {NESTED}` is not supported with `{MESHES}`: a mesh has no groups for it"
        yield "cp_comm_type", f"{what}; use a2a or p2p"
    saves = values.get("save") or values.get("load")
    if saves and values.get("ckpt_format", "torch_dist") != "torch_dist":
        yield "ckpt_format", f"`{MESHES}` needs `ckpt_format: torch_dist`, which any layout can read"
    if values.get("cuda_graph_impl") == "transformer_engine":
        what = f"`cuda_graph_impl: transformer_engine` is not supported with `{MESHES}`"
        yield "cuda_graph_impl", f"{what}: it captures the order of a pipeline in one group; use `local`"
    optimizer = str(values.get("optimizer") or "adam")
    is_shared_out = values.get("use_distributed_optimizer") or optimizer.startswith("dist_")
    if optimizer not in ("adam", "sgd") and is_shared_out:
        what = f"`optimizer: {optimizer}` distributes whole weights"
        yield "optimizer", f"{what}, and its gradient norm covers one mesh only: use adam or sgd"
    tied = not values.get("untie_embeddings_and_output_weights")
    if tied and values.get("use_distributed_optimizer") and values.get("overlap_grad_reduce"):
        what = "tied embeddings on two meshes cannot be combined with a distributed optimizer and"
        yield (
            "overlap_grad_reduce",
            f"{what} `overlap_grad_reduce`: their gradients must be whole; remove one",
        )


def _data_violations(layout: HeteroLayout, values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield arguments that would give the pipeline's ends different samples: each reads for its own dp."""
    everywhere = values.get("reset_attention_mask") or values.get("reset_position_ids")
    reading = layout.meshes if everywhere else (layout.meshes[0], layout.meshes[-1])
    sizes = sorted({mesh.dp for mesh in reading})
    if len(sizes) == 1:
        return
    why = (
        f"draws other samples for each dp, and meshes that read data have dp {' and '.join(map(str, sizes))}"
    )
    if values.get("dataloader_type") not in (None, "single"):
        yield "dataloader_type", f"`dataloader_type: {values['dataloader_type']}` {why}: use `single`"


def _batch_violations(layout: HeteroLayout, values: Mapping[str, Any]) -> Iterator[Violation]:
    for name in ("micro_batch_size", "eval_micro_batch_size"):
        size = values.get(name)
        if not isinstance(size, int) or size < 1:
            continue
        samples = layout.meshes[0].dp * size
        for number, mesh in enumerate(layout.meshes):
            if samples % mesh.dp:
                what = f"{name} {size} x dp {layout.meshes[0].dp} of mesh 0 = {samples} samples per step"
                yield name, f"{what}, not a multiple of dp {mesh.dp} of mesh {number}"


def _violations_of_each(layout: HeteroLayout, values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the rules of an ordinary layout that each mesh breaks; those broken by all are reported once."""
    found = []
    for number in range(len(layout.meshes)):
        of_mesh = mesh_values(layout, values, number)
        # The meshes define the layout of the pipeline: its mistakes are theirs, which are reported already.
        derived = set(layout_violations(of_mesh))
        broken = violations(of_mesh, layout.engine_world_size(number))
        found.append([wrong for wrong in broken if wrong not in derived])
    for number, wrong in enumerate(found):
        for dest, what in wrong:
            if all((dest, what) in others for others in found):
                if number == 0:
                    yield dest, what
            else:
                name = MESHES if dest in _OF_MESHES else dest
                yield name, f"mesh {number} ({layout.meshes[number]}): {what}"


_OF_MESHES = ("tensor_model_parallel_size", "context_parallel_size", "expert_model_parallel_size")


def mesh_values(layout: HeteroLayout, values: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the arguments (by dest) as the ranks of one mesh have them."""
    return {**values, **layout.arguments(values, number)}


def host_violations(
    layout: HeteroLayout, types: Sequence[str], host_processors: Collection[str]
) -> Iterator[Violation]:
    """Yield the mismatches between meshes and hosts.

    `types`: the type of the host of every rank, in rank order; `host_processors`: the types whose ranks
    compute on the host's own processors.
    """
    if host_processors and (others := set(types) - set(host_processors)):
        on_hosts, on_chips = (", ".join(sorted(kind)) for kind in (host_processors, others))
        yield MESHES, f"one job cannot have ranks on host processors ({on_hosts}) and on chips ({on_chips})"
    for number, mesh in enumerate(layout.meshes):
        found = {types[rank].upper(): types[rank] for rank in layout.ranks(number) if rank < len(types)}
        wrong = [name for key, name in found.items() if mesh.type and key != mesh.type.upper()]
        if wrong:
            ranks = layout.ranks(number)
            yield (
                MESHES,
                f"mesh {number} is for type {mesh.type}, but ranks {ranks[0]} to {ranks[-1]} include hosts "
                f"of type {', '.join(sorted(wrong))}: give `type=` in the hostfile, with the hosts in the "
                "order of the meshes",
            )
