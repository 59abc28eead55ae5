"""Fit the worker to the machine: argument defaults before the user's, patches, clear refusals."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

from flagscale.errors import Problem, UserError
from flagscale.inputs.findings import data_findings

_DEFAULTS = (
    "--dist-ckpt-optim-fully-reshardable",  # every layout can read every checkpoint
    "--eval-interval=1000",  # the engine divides by it but has no default
    "--logging-level=30",  # warnings; hundreds of lines of information otherwise
    "--no-one-logger",  # NVIDIA's internal metrics service
)


def prepare_platform(argv: Sequence[str]) -> list[str]:
    """Make the engine run here: apply the patches this machine needs and return the whole argument list.

    Must be called before the engine is imported. `UserError` when an argument asks for what this machine
    lacks.
    """
    import torch

    from megatron.flagscale import async_save
    from megatron.flagscale.args import engine_parser
    from megatron.flagscale.patches import has_te_or_apex
    from megatron.flagscale.platforms import cpu, no_te

    cuda, fused = torch.cuda.is_available(), has_te_or_apex()
    patch_engine()
    # Megatron asserts it where tensor or context parallel is on; sharded data parallel asserts the contrary.
    if not any("fsdp" in argument for argument in argv):
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    whole = [
        *_DEFAULTS,
        *async_save.arguments(cuda),
        *(() if fused else no_te.DEFAULTS),
        *(() if cuda else cpu.DEFAULTS),
        *argv,
    ]
    args = engine_parser().parse_args(whole)
    problems = [
        *_not_for_gpt(args),
        *(() if cuda else _impossible_on_cpu(args)),
        *async_save.problems(args, cuda),
        *(() if fused else _impossible_without_te(args)),
        *(_impossible_with_torch_layers(args) if args.transformer_impl == "torch" else ()),
    ]
    if (
        args.cross_entropy_loss_fusion
        and args.cross_entropy_fusion_impl == "native"
        and not (args.bf16 or args.fp16)
    ):
        problems.append(
            Problem("--cross-entropy-loss-fusion (native) rounds gradients to bf16: not with fp32")
        )
    problems += [Problem(what, f"--{name.replace('_', '-')}") for name, what in data_findings(vars(args))]
    if problems:
        raise UserError(problems)
    if not cuda and args.num_experts and args.expert_tensor_parallel_size is None:
        # With tensor parallel experts gathers are uneven, which gloo refuses.
        whole.insert(0, "--expert-tensor-parallel-size=1")
    if args.transformer_impl == "torch" and not args.reset_attention_mask:
        # Nothing but "see what came before": the kernels know that, a matrix of it is memory and time.
        whole.insert(0, "--no-create-attention-mask-in-dataloader")
    return whole


@functools.cache
def patch_engine() -> None:
    """Apply the patches this machine needs, once in a process, and before the engine is imported."""
    import torch

    from megatron.flagscale import noise
    from megatron.flagscale.patches import apply, has_te_or_apex, needed

    noise.quiet()
    patches = needed(torch.cuda.is_available(), has_te_or_apex())
    apply(patch for patch in patches if patch.target.startswith("torch:"))
    apply(patch for patch in patches if not patch.target.startswith("torch:"))


def _not_for_gpt(args: Any) -> list[Problem]:
    """Refuse what this entry would ignore: the engine knows these arguments, its GPT batches here do not."""
    refused = {
        "--mtp-num-layers": args.mtp_num_layers,
        "--hybrid-layer-pattern": args.hybrid_layer_pattern,
        "--hybrid-context-parallel": args.hybrid_context_parallel,
        "--dataloader-inter-document-masking": args.dataloader_inter_document_masking,
        "--per-dataset-sequences-path": args.per_dataset_sequences_path,
        "--sft": args.sft,
        "--fim-data": args.fim_data,
        "--perform-rl-step": args.perform_rl_step,
    }
    return [Problem(f"{name} is not supported by train_gpt") for name, is_on in refused.items() if is_on]


def _impossible_on_cpu(args: Any) -> list[Problem]:
    refused = {
        f"--distributed-backend {args.distributed_backend}": args.distributed_backend != "gloo",
        "--fp8-format": args.fp8 is not None,
        "--fp4-format": args.fp4 is not None,
        "--moe-grouped-gemm": args.moe_grouped_gemm,
        f"--cuda-graph-impl {args.cuda_graph_impl}": args.cuda_graph_impl != "none",
        "--nccl-ub": args.nccl_ub,
        "--tp-comm-overlap": args.tp_comm_overlap,
    }
    problems = [
        Problem(f"{name} needs a CUDA device, and there is none here")
        for name, is_on in refused.items()
        if is_on
    ]
    if args.num_experts and args.add_bias_linear:
        problems.append(
            Problem("experts with biases are not computed right on CPU", hint="use --disable-bias-linear")
        )
    interleaved = args.num_layers_per_virtual_pipeline_stage or args.num_virtual_stages_per_pipeline_rank
    if interleaved and not args.overlap_p2p_comm:
        problems.append(
            Problem(
                "an interleaved pipeline on gloo needs overlapped sends: drop --no-overlap-p2p-communication"
            )
        )
    return problems


def _impossible_without_te(args: Any) -> list[Problem]:
    missing = "needs TransformerEngine, which is not installed here"
    refused = {
        f"--transformer-impl {args.transformer_impl}": args.transformer_impl == "transformer_engine",
    }
    if args.transformer_impl == "local":
        refused["--sequence-parallel"] = args.sequence_parallel and args.tensor_model_parallel_size > 1
        refused["--context-parallel-size > 1"] = args.context_parallel_size > 1
        missing += "; --transformer-impl torch does not need it"
    return [Problem(f"{name} {missing}") for name, is_on in refused.items() if is_on]


def _impossible_with_torch_layers(args: Any) -> list[Problem]:
    """Refuse what the layers on torch's kernels do not do, and what they would ignore."""
    refused = {
        f"--cp-comm-type {' '.join(args.cp_comm_type)}": bool(
            set(args.cp_comm_type) - {"p2p", "all_gather"} and args.context_parallel_size > 1
        ),
        f"--attention-backend {args.attention_backend.name}": args.attention_backend.name != "auto",
        f"--softmax-type {args.softmax_type}": args.softmax_type != "vanilla",
        "--qk-clip": args.qk_clip,
        "--log-max-attention-logit": args.log_max_attention_logit,
        "--multi-latent-attention": args.multi_latent_attention,
        "--heterogeneous-layers-config-path": args.heterogeneous_layers_config_path is not None,
        "--experimental-attention-variant": args.experimental_attention_variant is not None,
        "--fp8-format": args.fp8 is not None,
        "--fp4-format": args.fp4 is not None,
        "--tp-comm-overlap": args.tp_comm_overlap,
    }
    problems = [
        Problem(f"{name} does not go with --transformer-impl torch")
        for name, is_on in refused.items()
        if is_on
    ]
    if args.reset_attention_mask and not args.create_attention_mask_in_dataloader:
        problems.append(
            Problem(
                "--reset-attention-mask needs the mask that --no-create-attention-mask-in-dataloader omits"
            )
        )
    if not args.init_by_rank and (args.use_cpu_initialization or args.init_model_with_meta_device):
        problems.append(
            Problem(
                "--use-cpu-initialization and --init-model-with-meta-device draw weights by rank: "
                "add --init-by-rank if that is wanted"
            )
        )
    return problems


def adapt(model_config: Any, args: Any) -> None:
    """Set what has no argument: layers, initial weights, one checkpoint key a layer, buffers for gloo."""
    import torch

    transformer = model_config.transformer
    if args.transformer_impl != "transformer_engine" and not args.init_by_rank:
        from megatron.flagscale.initialization import draw_by_name

        draw_by_name(model_config, args.seed)
    if args.transformer_impl == "torch" and args.spec is None:
        from megatron.flagscale.layers.spec import layer_spec

        model_config.transformer_layer_spec = layer_spec
        transformer.transformer_impl = "local"  # for the engine: Megatron's own linear layers
    transformer.hetereogenous_dist_checkpoint = True
    if not torch.cuda.is_available():
        transformer.deallocate_pipeline_outputs = False
