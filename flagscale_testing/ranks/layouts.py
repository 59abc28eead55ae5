"""One small model in many parallel layouts, each compared with training in one process."""

from __future__ import annotations

import functools
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flagscale_testing.ranks.forked import Curve, Run, run_all


@dataclass(frozen=True)
class Layout:
    """One way to distribute a model over ranks; each `model` has its own reference run in one process."""

    name: str
    model: str
    ranks: int
    options: str

    def run(self, steps: int) -> Run:
        argv = (*MODELS[self.model], "--train-iters", str(steps), *shlex.split(self.options))
        of_pictures = {"program": "flagscale_testing.ranks.pictures:train"} if self.model in PICTURES else {}
        return Run(self.name, self.ranks, argv, **of_pictures)


COMMON = """
    --tokenizer-type NullTokenizer --vocab-size 255 --seq-length 64 --max-position-embeddings 64
    --num-layers 4 --hidden-size 64 --num-attention-heads 4 --attention-dropout 0 --hidden-dropout 0
    --micro-batch-size 2 --global-batch-size 8 --lr 1e-3 --lr-decay-style constant
    --weight-decay 0.1 --log-interval 1 --eval-iters 0 --make-vocab-size-divisible-by 32 --num-workers 0
"""
GPT = "--position-embedding-type learned_absolute"
TIED = """--normalization RMSNorm --swiglu --position-embedding-type rope --disable-bias-linear
    --group-query-attention --num-query-groups 2"""
LLAMA = f"{TIED} --untie-embeddings-and-output-weights"
MLA = """--normalization RMSNorm --swiglu --position-embedding-type rope --disable-bias-linear
    --untie-embeddings-and-output-weights --multi-latent-attention --kv-lora-rank 24 --qk-head-dim 16
    --qk-pos-emb-head-dim 8 --v-head-dim 12"""
DEEPSEEK_V3 = f"{MLA} --q-lora-rank 24 --qk-layernorm --rope-type rope"
DENSE_FIRST = "--moe-layer-freq ([0]+[1]*3)"
YARN = "--rope-type yarn --rotary-scaling-factor 40 --mscale 0.707 --mscale-all-dim 0.5"
MOE = """--num-experts 4 --moe-router-topk 2 --moe-router-load-balancing-type aux_loss
    --moe-aux-loss-coeff 0.01 --moe-ffn-hidden-size 96"""
EXPERTS = "--num-experts 8 --moe-router-topk 2 --moe-ffn-hidden-size 32"
SIGMOID = """--moe-router-score-function sigmoid --moe-router-dtype fp32 --moe-router-topk-scaling-factor 2.5
    --moe-router-enable-expert-bias --moe-router-bias-update-rate 1e-2"""
GROUPS = "--moe-router-num-groups 4 --moe-router-group-topk 2"
UNAIDED = "--moe-router-load-balancing-type none --moe-aux-loss-coeff 0"
SEQUENCE = "--moe-router-load-balancing-type seq_aux_loss --moe-aux-loss-coeff 0.01 --moe-z-loss-coeff 1e-3"
MTP = "--mtp-num-layers 1"
PARTS = f"""{EXPERTS} {SIGMOID} {GROUPS} {MTP} --moe-layer-freq ([0]+[1]*3)
    --moe-router-load-balancing-type seq_aux_loss --moe-aux-loss-coeff 1e-3
    --moe-shared-expert-intermediate-size 32"""
WIDE = "--init-method-std 0.1"  # norms of tiny results would enlarge rounding errors
GEMMA = f"""{TIED} --norm-position both --apply-layernorm-1p --qk-layernorm --scale-embedding
    --query-pre-attn-scalar 20 --glu-activation gelu_tanh --attn-logit-softcapping 2
    --final-logit-softcapping 5 --window-size 9,0 --window-attn-skip-freq 2 --window-rotary-base 100
    --init-method-std 0.06"""
SINKS = f"""--normalization RMSNorm --untie-embeddings-and-output-weights
    --group-query-attention --num-query-groups 2 --softmax-type learnable --window-size 9,0
    --window-attn-skip-freq 2 --quick-geglu --glu-linear-offset 1 --activation-func-clamp-value 7
    --position-embedding-type yarn --rotary-scaling-factor 32 --no-yarn-correction-range-round-to-int {MOE}"""
PACKED = "--reset-position-ids --reset-attention-mask --eod-mask-loss"
TOWER = """--vision-image-size 30 --vision-patch-size 7 --vision-num-layers 3 --vision-hidden-size 64
    --vision-ffn-hidden-size 96 --vision-num-attention-heads 2 --image-token 250 --video-token 251"""
ONEVISION = f"""{TOWER} --seq-length 320 --max-position-embeddings 320
    --vision-model-type siglip --image-aspect-ratio anyres_max_4 --mm-patch-merge-type spatial_unpad
    --image-grid-pinpoints (1x1),...,(3x3) --video-frames 4"""
LONG = "--seq-length 704 --max-position-embeddings 704"
PICTURES: dict[str, str] = {
    "onevision": f"{LLAMA} {ONEVISION}",
    "onevision, tied": f"{TIED} {ONEVISION} --add-qkv-bias",
    "onevision, packed": f"{LLAMA} {ONEVISION} --packing-buffer-size 10 {LONG}",
    "onevision, per token": f"{LLAMA} {ONEVISION} --calculate-per-token-loss",
    "onevision, projector only": f"{LLAMA} {ONEVISION} --freeze-LM --freeze-ViT",
    "onevision, frozen tower": f"{LLAMA} {ONEVISION} --freeze-ViT",
    "onevision, frozen language model": f"{LLAMA} {ONEVISION} --freeze-LM",
    "onevision, experts": f"{LLAMA} {ONEVISION} {MOE} --moe-token-dispatcher-type alltoall",
    "onevision, experts, one length": f"{LLAMA} {ONEVISION} {MOE}",
    "onevision bf16": f"{LLAMA} {ONEVISION} --bf16 --lr 1e-4",
    "llava": f"{LLAMA} {TOWER} --vision-model-type clip",
}
"""Models with pictures, which `flagscale_testing.ranks.pictures` trains."""
MODELS: dict[str, Sequence[str]] = {
    name: shlex.split(f"{COMMON} {options}" if name in PICTURES else f"--mock-data {COMMON} {options}")
    for name, options in {
        **PICTURES,
        "llama": LLAMA,
        "llama, 8 layers": f"{LLAMA} --num-layers 8",
        "gpt": GPT,
        "moe": f"{LLAMA} {MOE}",
        "moe unbalanced": f"{LLAMA} {MOE} --moe-router-load-balancing-type none --moe-aux-loss-coeff 0",
        "packed": f"{LLAMA} {PACKED}",
        "packed, per token": f"{LLAMA} {PACKED} --calculate-per-token-loss",
        "qk norm": f"{LLAMA} --qk-layernorm --apply-layernorm-1p",
        "window": f"{LLAMA} --window-size 9,0",
        "norms after": f"{LLAMA} --norm-position post {WIDE}",
        "olmo": f"{LLAMA} --norm-position post --qk-layernorm-across-heads {WIDE}",
        "norms around": f"{LLAMA} {MTP} --norm-position both {WIDE}",
        "gemma": GEMMA,
        "gemma, packed": f"{GEMMA} {PACKED}",
        "shared": f"{LLAMA} {MOE} --moe-shared-expert-intermediate-size 48",
        "mla": DEEPSEEK_V3,
        "mla yarn": f"{MLA} --qk-layernorm {YARN}",
        "mla plain": f"{MLA} --q-lora-rank 24 --rope-type rope --rotary-percent 0.5",
        "mla packed": f"{DEEPSEEK_V3} {PACKED}",
        "mla experts": f"{DEEPSEEK_V3} {MOE} --moe-shared-expert-intermediate-size 48 {DENSE_FIRST}",
        "mla dropout": f"{DEEPSEEK_V3} --attention-dropout 0.1 --hidden-dropout 0.1",
        "mla bf16": f"{DEEPSEEK_V3} --bf16",
        "sigmoid": f"{LLAMA} {EXPERTS} {SIGMOID} {UNAIDED}",
        "groups": f"""{LLAMA} {EXPERTS} {GROUPS} {SEQUENCE} --moe-router-pre-softmax --moe-router-dtype fp64
            --init-method-std 0.06""",
        "sinks": SINKS,
        "sinks, packed": f"{SINKS} {PACKED}",
        "gated": f"{LLAMA} {MOE} --moe-shared-expert-intermediate-size 48 --moe-shared-expert-gate",
        "mtp": f"{LLAMA} {MTP}",
        "mtp, tied": "--position-embedding-type rope --mtp-num-layers 2 --mtp-loss-scaling-factor 0.3",
        "mtp, packed": f"{LLAMA} {PACKED} --mtp-num-layers 2",
        "mtp, per token": f"{LLAMA} {PACKED} --mtp-num-layers 2 --calculate-per-token-loss",
        "deepseek": f"{LLAMA} {PARTS}",
        "deepseek mla": f"{DEEPSEEK_V3} {PARTS}",
        "deepseek bf16": f"{LLAMA} {PARTS} --bf16",
        "dropout": f"{LLAMA} --attention-dropout 0.1 --hidden-dropout 0.1",
        "llama bf16": f"{LLAMA} --bf16",
        "llama fp16": f"{LLAMA} --fp16 --initial-loss-scale 65536 --hysteresis 1",
    }.items()
}

TP2, PP2, CP2 = (f"--{kind}-parallel-size 2" for kind in ("tensor-model", "pipeline-model", "context"))


@dataclass(frozen=True)
class Difference:
    """The largest differences between a layout and one process over all iterations."""

    loss: float
    grad_norm: float
    error: str = ""

    def is_small(self, model: str) -> bool:
        rough = model.endswith("16")
        loss, norm = (5e-3, 5e-3) if rough else (2e-5, 1e-4)
        return not self.error and self.loss <= loss and self.grad_norm <= norm


def compare(
    layouts: Sequence[Layout], folder: Path, steps: int = 20, mutation: str = ""
) -> dict[str, Difference]:
    """Train every layout, with a mutation (see `Run`), and its reference; return their differences."""
    runs = [replace(layout.run(steps), mutation=mutation) for layout in layouts]
    curves = run_all(runs, folder)
    return {
        layout.name: _difference(_one_process(layout.model, steps), curves[layout.name], steps)
        for layout in layouts
    }


@functools.cache
def _one_process(model: str, steps: int) -> Curve:
    with tempfile.TemporaryDirectory() as folder:
        (curve,) = run_all([Layout("one process", model, 1, "").run(steps)], Path(folder)).values()
    return curve


def _difference(base: Curve, curve: Curve, steps: int) -> Difference:
    error = base.error or curve.error
    if error or not len(base.losses) == len(curve.losses) == steps:
        return Difference(float("inf"), float("inf"), error or "not every iteration was logged")
    loss = max(abs(a - b) for a, b in zip(base.losses, curve.losses, strict=True))
    norm = max(abs(a - b) / a for a, b in zip(base.grad_norms, curve.grad_norms, strict=True))
    return Difference(loss, norm)
