"""Fit the worker to the machine: argument defaults before the user's, patches, clear refusals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from flagscale.errors import Problem, UserError

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

    from megatron.flagscale import noise
    from megatron.flagscale.args import engine_parser
    from megatron.flagscale.inputs import check_inputs
    from megatron.flagscale.patches import apply, has_te_or_apex, needed
    from megatron.flagscale.platforms import cpu, no_te

    noise.quiet()
    cuda, fused = torch.cuda.is_available(), has_te_or_apex()
    patches = needed(cuda, fused)
    apply(patch for patch in patches if patch.target.startswith("torch:"))
    apply(patch for patch in patches if not patch.target.startswith("torch:"))
    # Megatron asserts it where tensor or context parallel is on; sharded data parallel asserts the contrary.
    if not any("fsdp" in argument for argument in argv):
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    whole = [*_DEFAULTS, *(() if fused else no_te.DEFAULTS), *(() if cuda else cpu.DEFAULTS), *argv]
    args = engine_parser().parse_args(whole)
    problems = [
        *_not_for_gpt(args),
        *(() if cuda else _impossible_on_cpu(args)),
        *(() if fused else _impossible_without_te(args)),
    ]
    if (
        args.cross_entropy_loss_fusion
        and args.cross_entropy_fusion_impl == "native"
        and not (args.bf16 or args.fp16)
    ):
        problems.append(
            Problem("--cross-entropy-loss-fusion (native) rounds gradients to bf16: not with fp32")
        )
    if problems:
        raise UserError(problems)
    check_inputs(args)
    if not cuda and args.num_experts and args.expert_tensor_parallel_size is None:
        # With tensor parallel experts gathers are uneven, which gloo refuses.
        whole.insert(0, "--expert-tensor-parallel-size=1")
    return whole


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
        "--async-save": args.async_save,
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
        "--sequence-parallel": args.sequence_parallel and args.tensor_model_parallel_size > 1,
        "--context-parallel-size > 1": args.context_parallel_size > 1,
    }
    return [Problem(f"{name} {missing}") for name, is_on in refused.items() if is_on]


def adapt(model_config: Any) -> None:
    """Set what has no argument: one checkpoint key a layer; pipeline buffers that outlive gloo's sends."""
    import torch

    transformer = model_config.transformer
    transformer.hetereogenous_dist_checkpoint = True
    if not torch.cuda.is_available():
        transformer.deallocate_pipeline_outputs = False
