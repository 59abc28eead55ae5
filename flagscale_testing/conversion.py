"""Convert small random models of every family from Hugging Face to Megatron, train there, and convert back.

Used by the tests and, for the table in docs/conversion.md, by `benchmarks/conversion_table.py`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from flagscale.formats import option_of
from flagscale_testing.ranks.forked import Curve, Run, run_all
from flagscale_testing.ranks.layouts import PP2, TP2
from megatron.flagscale.convert.convert import TASK, convert

VOCAB, LENGTH = 250, 64
EP2 = "--expert-model-parallel-size 2"
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 64,
    "mscale": 0.7,
    "mscale_all_dim": 1.0,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 64,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@dataclass(frozen=True)
class Degrees:
    """One layout of a training: its name, the number of ranks, and the arguments for them."""

    name: str
    ranks: int
    arguments: str


DENSE = (Degrees("TP2 PP2", 4, f"{TP2} {PP2}"),)
EXPERTS = (
    Degrees("EP2", 2, EP2),
    Degrees("TP2 SP PP2 EP2", 4, f"{TP2} {PP2} {EP2} --expert-tensor-parallel-size 1 --sequence-parallel"),
)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Keys of the number of experts."""


@dataclass(frozen=True)
class Case:
    """A model in terms of its transformers configuration.

    `padded` means that its training pads the vocabulary. `mtp` is the number of layers for multi-token
    prediction, which transformers does not save. `named` holds the keys of `config.json` by which the family
    is published, if not by those of `config`. `odd` holds what its odd shape needs, and `served` what vLLM
    needs, beyond the rules of `flagscale_testing.shapes`.
    """

    config: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    padded: bool = False
    mtp: int = 0
    named: Mapping[str, Any] = field(default_factory=dict)
    odd: Mapping[str, Any] = field(default_factory=dict)
    served: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layouts(self) -> tuple[Degrees, ...]:
        """The layouts of its trainings."""
        return EXPERTS if any(key in self.settings for key in _EXPERTS) else DENSE


_MOONLIGHT = {
    "q_lora_rank": None,
    "rope_parameters": None,
    "rms_norm_eps": 1e-5,
    "routed_scaling_factor": 2.446,
}
_GROUPS = {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 4, "topk_method": "group_limited_greedy"}


def _llama3(factor: float) -> dict[str, Any]:
    where = {"rope_theta": 500000.0, "original_max_position_embeddings": 8192}
    return {"rope_parameters": {**LLAMA3, **where, "factor": factor}, "max_position_embeddings": 131072}


def _deepseek(**more: Any) -> dict[str, Any]:
    ranks = {"kv_lora_rank": 32, "q_lora_rank": 48}
    widths = {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
    experts = {"n_routed_experts": 8, "n_shared_experts": 2, "moe_intermediate_size": 40}
    chosen = {"num_experts_per_tok": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    whole = {"num_key_value_heads": 4, **ranks, **widths, **experts, **chosen}
    return {**whole, "rope_parameters": YARN, **more}


_GEMMA = {"head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": 16}
_BY_TYPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
_GPT_OSS = {
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "head_dim": 32,
    "sliding_window": 16,
    "rope_parameters": {**_YARN, "factor": 32.0, "truncate": False},
    "max_position_embeddings": 2048,
}
_QWEN_MOE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
_SIX_HEADS = {"num_key_value_heads": 6}
_FIVE_HEADS = {"num_attention_heads": 5, "num_key_value_heads": 1, "vocab_size": 1003}
_ODD_GROUPS = {**_SIX_HEADS, "n_routed_experts": 9, "n_group": 3, "topk_group": 2}

CASES = {
    "Aquila": Case(
        "Llama",
        {"num_key_value_heads": 4, "rms_norm_eps": 1e-5},
        odd=_SIX_HEADS,
        padded=True,
        named={"architectures": ["AquilaForCausalLM"], "model_type": "aquila"},
    ),
    "Llama 2": Case("Llama"),
    "Llama 3.1": Case("Llama", _llama3(8.0)),
    "Llama 3.2, tied": Case("Llama", {**_llama3(32.0), "tie_word_embeddings": True}),
    "Llama 2, linear": Case("Llama", {"rope_parameters": _LINEAR}),
    "Llama 2, bf16": Case("Llama", dtype="bfloat16"),
    "Llama, biases": Case("Llama", {"attention_bias": True, "mlp_bias": True}),
    "Mistral": Case("Mistral", {"sliding_window": None}),
    "Mistral, window": Case("Mistral", {"sliding_window": 16}, odd=_FIVE_HEADS),
    "Mixtral": Case("Mixtral", {"num_local_experts": 4}, odd=_FIVE_HEADS),
    "Qwen2, 2.5": Case("Qwen2", {"rope_theta": 1000000.0}),
    "Qwen2, 2.5, tied": Case("Qwen2", {"tie_word_embeddings": True}),
    "Qwen3": Case("Qwen3", {"head_dim": 32}),
    "Qwen3, tied": Case("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "Qwen3, yarn": Case("Qwen3", {"head_dim": 32, "rope_parameters": _YARN, "max_position_embeddings": 1024}),
    "Qwen2-MoE": Case("Qwen2Moe", {**_QWEN_MOE, "shared_expert_intermediate_size": 56}),
    "Qwen3-MoE": Case("Qwen3Moe", {**_QWEN_MOE, "head_dim": 32, "norm_topk_prob": True}),
    "Gemma-2": Case("Gemma2", {**_GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0}),
    "Gemma-3": Case("Gemma3Text", {**_GEMMA, "sliding_window_pattern": 2, "rope_parameters": _BY_TYPE}),
    "OLMo-2": Case("Olmo2", {"rope_theta": 500000.0, "rms_norm_eps": 1e-6}),
    "gpt-oss": Case("GptOss", _GPT_OSS),
    "DeepSeek-V2": Case("DeepseekV2", _deepseek(routed_scaling_factor=16.0, **_GROUPS), odd=_ODD_GROUPS),
    "DeepSeek-V2-Lite": Case("DeepseekV2", _deepseek(q_lora_rank=None), odd=_SIX_HEADS),
    "DeepSeek-V3": Case(
        "DeepseekV3", _deepseek(n_group=4, topk_group=2, num_nextn_predict_layers=0), odd=_ODD_GROUPS
    ),
    "DeepSeek-V3, MTP": Case("DeepseekV3", _deepseek(num_nextn_predict_layers=1), mtp=1, odd=_SIX_HEADS),
    "Moonlight": Case("DeepseekV3", _deepseek(**_MOONLIGHT, num_nextn_predict_layers=0), odd=_SIX_HEADS),
}


@dataclass(frozen=True)
class Outcome:
    """The results of one model.

    `round_trip`: Hugging Face -> Megatron -> Hugging Face is bitwise equal; `trained`: it still is with a
    training in between that loads the model in a layout, does one step at learning rate 0, and saves, for
    each layout. `logits` is the largest difference between the logits of Megatron and transformers, `loss`
    the largest between their losses in the first step. None if not tried.
    """

    round_trip: bool
    logits: float
    trained: bool | None
    loss: float | None
    error: str = ""


def make_model(case: Case, folder: Path, seed: int = 0) -> Any:
    """Save a random model of the case; norms and biases are random too, so that swapped ones are noticed."""
    import transformers

    torch.manual_seed(seed)
    common = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = getattr(transformers, f"{case.config}Config")(**{**common, **case.settings})
    # Its other kernels for attention ignore soft caps.
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = made.to(getattr(torch, case.dtype)).eval()
    with torch.no_grad():
        buffers = [(name, one) for name, one in model.named_buffers() if name.endswith("bias")]
        for name, parameter in (*model.named_parameters(), *buffers):
            if parameter.dim() == 1 or name.endswith("bias"):
                parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.2)
    model.save_pretrained(folder)
    if case.mtp:
        add_mtp(folder, config, case.mtp)
    if case.named:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **case.named}))
    return model


def add_mtp(folder: Path, config: Any, layers: int) -> None:
    """Add layers for multi-token prediction to a DeepSeek-V3, as they are published, with random weights."""
    from safetensors.torch import save_file

    tensors = tensors_of(folder)
    last = f"model.layers.{config.num_hidden_layers - 1}."
    hidden = config.hidden_size
    for layer in range(config.num_hidden_layers, config.num_hidden_layers + layers):
        own = f"model.layers.{layer}."
        shapes = {
            name.removeprefix(last): one.shape for name, one in tensors.items() if name.startswith(last)
        }
        shapes |= {f"{name}.weight": (hidden,) for name in ("enorm", "hnorm", "shared_head.norm")}
        shapes["eh_proj.weight"] = (hidden, 2 * hidden)
        for name, shape in shapes.items():
            drawn = torch.randn(shape) * (0.1 if len(shape) > 1 else 0.2)
            is_norm = len(shape) == 1 and name.endswith("weight")
            tensors[own + name] = (1 + drawn if is_norm else drawn).to(tensors["lm_head.weight"].dtype)
        tensors[f"{own}embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors[f"{own}shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors in the safetensors files of a folder."""
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def same(one: Path, other: Path) -> bool:
    """Return whether two folders hold the same tensors, bit for bit."""
    a, b = tensors_of(one), tensors_of(other)
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def write_data(folder: Path) -> tuple[str, torch.Tensor]:
    """Write data whose samples are all the same `LENGTH` tokens plus the first; return prefix and sample."""
    import numpy
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    tokens = torch.randint(3, VOCAB - 1, (LENGTH,), generator=torch.Generator().manual_seed(1))
    builder = IndexedDatasetBuilder(str(folder / "text.bin"), dtype=numpy.uint16)
    builder.add_document(tokens.repeat(64), [LENGTH * 64])
    builder.finalize(str(folder / "text.idx"))
    return str(folder / "text"), torch.cat([tokens, tokens[:1]])[None]


def task_argv(folder: Path, case: Case) -> list[str]:
    """Return the worker's arguments from the task file next to a converted checkpoint."""
    task = yaml.safe_load((folder / TASK).read_text())
    if case.padded:
        del task["padded_vocab_size"]
        task["make_vocab_size_divisible_by"] = 64
    return task_argv_of(task)


def task_argv_of(task: Mapping[str, Any]) -> list[str]:
    """Return the worker's arguments for those of a task file."""
    options = [(option_of(name), value) for name, value in task.items()]
    return [part for name, value in options for part in ([name] if value is True else [name, str(value)])]


def training(folder: Path, case: Case, layout: Degrees, data: str, saved: Path) -> list[str]:
    """Return the arguments of a training that loads, does one step at learning rate 0, and saves."""
    return [
        *task_argv(folder, case),
        *shlex.split(f"{layout.arguments} --seq-length {LENGTH} --micro-batch-size 2 --global-batch-size 4"),
        *shlex.split("--train-iters 1 --lr 0 --lr-decay-style constant --log-interval 1 --eval-iters 0"),
        *shlex.split("--tokenizer-type NullTokenizer --split 100,0,0 --use-distributed-optimizer"),
        *("--moe-router-bias-update-rate", "0"),
        *("--data-path", data, "--load", str(folder), "--save", str(saved), "--save-interval", "1"),
    ]


def run_chain(
    names: Iterable[str], folder: Path, trained: Iterable[str] = CASES, layouts: int | None = None
) -> dict[str, Outcome]:
    """Convert the models of the named cases there and back in `folder`; also train those in `trained`.

    `layouts` is the number of layouts in which a model is trained, at most; None for all of them.
    """
    data, tokens = write_data(folder)
    torch.save({"tokens": tokens, "pictures": None}, folder / "tokens.pt")
    runs, models = [], {}
    for name in names:
        case, where = CASES[name], folder / name
        models[name] = make_model(case, where / "hf")
        convert(where / "hf", where / "megatron")
        runs.append(logits_run(name, case, where, LENGTH + 1))
        for layout in case.layouts[:layouts] if name in trained else ():
            argv = training(where / "megatron", case, layout, data, where / layout.name)
            runs.append(Run(_training(name, layout), layout.ranks, tuple(argv)))
    curves = run_all(runs, folder / "runs")
    return {name: _outcome(name, folder / name, model, tokens, curves) for name, model in models.items()}


def _training(name: str, layout: Degrees) -> str:
    return f"{name}: training, {layout.name}"


def logits_run(name: str, case: Case, where: Path, length: int) -> Run:
    """Return a run of Megatron's model in `where` on `tokens.pt` beside it; writes `logits.pt` in `where`."""
    files = [str(where.parent / "tokens.pt"), str(where / "logits.pt")]
    steps = f"--seq-length {length} --micro-batch-size 1 --train-iters 1 --skip-train"
    loading = ["--load", str(where / "megatron"), "--mock-data", "--tokenizer-type", "NullTokenizer"]
    argv = (*files, *task_argv(where / "megatron", case), *shlex.split(steps), *loading)
    return Run(f"{name}: logits", 1, argv, "megatron.flagscale.convert.forward:main")


def _outcome(
    name: str, where: Path, model: Any, tokens: torch.Tensor, curves: Mapping[str, Curve]
) -> Outcome:
    each = {layout: curves.get(_training(name, layout)) for layout in CASES[name].layouts}
    trainings = {layout: curve for layout, curve in each.items() if curve}
    error = "\n".join(one.error for one in (curves[f"{name}: logits"], *trainings.values()) if one.error)
    if error:
        return Outcome(False, float("inf"), False, None, error)
    with torch.no_grad():
        expected = model(tokens).logits.float()
    logits = torch.load(where / "logits.pt", weights_only=True)[..., :VOCAB]
    difference = (logits - expected).abs().max().item()
    convert(where / "megatron", where / "back")
    came_back = same(where / "hf", where / "back")
    if not trainings:
        return Outcome(came_back, difference, None, None)
    loss = torch.nn.functional.cross_entropy(expected[0, :-1], tokens[0, 1:]).item()
    equal = []
    for layout in trainings:
        convert(where / layout.name, where / f"after {layout.name}")
        equal.append(same(where / "hf", where / f"after {layout.name}"))
    losses = max(abs(curve.losses[0] - loss) for curve in trainings.values())
    return Outcome(came_back, difference, all(equal), losses)
