"""What the worker refuses: what this machine cannot do, what would be ignored, what goes wrong in silence.

The launcher refuses most of it before a start (flagscale/engines/megatron_*.py); here the machine itself is
asked, also for who starts the worker without the launcher.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from flagscale.checks.data import data_violations
from flagscale.checks.megatron import NOT_DONE
from flagscale.errors import Problem
from megatron.flagscale.checkpoint import async_save
from megatron.flagscale.chips import chip


def refusals(args: Any, cuda: bool, fused: bool) -> list[Problem]:
    """Return what is wrong with the arguments on a machine with CUDA, with fused layers, or without."""
    return [
        *_not_for_gpt(args),
        *_not_installed(args),
        *(() if cuda else _impossible_on_cpu(args)),
        *async_save.problems(args, cuda),
        *(() if fused else _impossible_without_te(args)),
        *(_impossible_with_torch_layers(args) if args.transformer_impl == "torch" else ()),
        *_rounded_gradients(args),
        *(Problem(what, f"--{name.replace('_', '-')}") for name, what in data_violations(vars(args))),
    ]


def _not_for_gpt(args: Any) -> list[Problem]:
    """Refuse what this entry would ignore: the engine knows these arguments, its GPT batches here do not."""
    return [
        Problem(f"--{name.replace('_', '-')} is not supported by train_gpt")
        for name in NOT_DONE
        if getattr(args, name)
    ]


def _not_installed(args: Any) -> list[Problem]:
    """Refuse what a package is missing for; a folder `wandb` of a run is no such package."""
    spec = importlib.util.find_spec("wandb") if args.wandb_project else None
    if args.wandb_project and (spec is None or spec.origin is None):
        what = f"the package `wandb` is not installed in {sys.prefix}"
        return [Problem(what, "--wandb-project", "install it there, or leave wandb_project out")]
    return []


def _impossible_on_cpu(args: Any) -> list[Problem]:
    refused = {
        f"--distributed-backend {args.distributed_backend}": args.distributed_backend != chip().backend,
        "--fp8-format": args.fp8 is not None,
        "--fp4-format": args.fp4 is not None,
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
    return problems


def _impossible_without_te(args: Any) -> list[Problem]:
    missing = "needs TransformerEngine, which is not installed here"
    refused = {
        f"--transformer-impl {args.transformer_impl}": args.transformer_impl == "transformer_engine",
    }
    if args.transformer_impl == "local":
        refused["--sequence-parallel"] = args.sequence_parallel and args.tensor_model_parallel_size > 1
        refused["--context-parallel-size > 1"] = args.context_parallel_size > 1
        refused["--moe-grouped-gemm"] = args.moe_grouped_gemm
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
        "--moe-grouped-gemm with biases": args.moe_grouped_gemm and args.add_bias_linear,
        "--recompute-modules moe_act": "moe_act" in (args.recompute_modules or []),
    }
    problems = [
        Problem(f"{name} does not go with --transformer-impl torch")
        for name, is_on in refused.items()
        if is_on
    ]
    if not args.init_by_rank and (args.use_cpu_initialization or args.init_model_with_meta_device):
        problems.append(
            Problem(
                "--use-cpu-initialization and --init-model-with-meta-device draw weights by rank: "
                "add --init-by-rank if that is wanted"
            )
        )
    return problems


def _rounded_gradients(args: Any) -> list[Problem]:
    native = args.cross_entropy_loss_fusion and args.cross_entropy_fusion_impl == "native"
    if native and not (args.bf16 or args.fp16):
        return [Problem("--cross-entropy-loss-fusion (native) rounds gradients to bf16: not with fp32")]
    return []
