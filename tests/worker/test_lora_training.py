"""Trainings of adapters: every layout computes the same, and checkpoints hold adapters only."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from flagscale.run.checkpoints import folder_of
from flagscale_testing.ranks.forked import Curve, Run, run_all
from flagscale_testing.ranks.layouts import CP2, DEEPSEEK_V3, LLAMA, PP2, TP2

pytestmark = pytest.mark.timeout(900)  # the first test of each fixture waits for all its trainings
STEPS, SAVED_AT, RANK = 4, 2, 3
COMMON = """--mock-data --tokenizer-type NullTokenizer --vocab-size 255 --seq-length 32
    --max-position-embeddings 32 --num-layers 2 --hidden-size 32 --ffn-hidden-size 48 --num-attention-heads 4
    --attention-dropout 0 --hidden-dropout 0 --micro-batch-size 2 --global-batch-size 4 --lr 1e-2
    --lr-decay-style constant --weight-decay 0.1 --log-interval 1 --eval-iters 0
    --make-vocab-size-divisible-by 32 --num-workers 0"""
EXPERTS = """--num-experts 4 --moe-router-topk 2 --moe-ffn-hidden-size 32 --moe-layer-freq ([0]+[1])
    --moe-shared-expert-intermediate-size 16 --moe-router-load-balancing-type none --moe-aux-loss-coeff 0
    --moe-router-score-function sigmoid --moe-router-enable-expert-bias --moe-router-bias-update-rate 1e-2"""
MODELS = {
    "llama": LLAMA,
    "deep": f"{LLAMA} --num-layers 4",
    "tied": LLAMA.replace("--untie-embeddings-and-output-weights", ""),
    "experts": f"{LLAMA} {EXPERTS}",
    "mla": DEEPSEEK_V3,
    "llama bf16": f"{LLAMA} --bf16 --lr 1e-3",
}
LENGTH = f"--train-iters {STEPS}"
ADAPTERS = f"--lora-rank {RANK} --lora-alpha 6"
TP2_SP = f"{TP2} --sequence-parallel"
EP2, ETP1 = "--expert-model-parallel-size 2", "--expert-tensor-parallel-size 1"


@dataclass(frozen=True)
class Layout:
    """A training of adapters that is compared with one in a single process, of the same model."""

    name: str
    model: str
    ranks: int
    options: str


RECOMPUTED = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
FAST = Layout("TP2 SP, recomputed", "llama", 2, f"{TP2_SP} {RECOMPUTED}")
SLOW = (
    Layout("TP2", "llama", 2, TP2),
    Layout("TP2 PP2", "llama", 4, f"{TP2} {PP2}"),
    Layout("PP2 interleaved", "deep", 2, f"{PP2} --num-layers-per-virtual-pipeline-stage 1"),
    Layout("CP2", "llama", 2, CP2),
    Layout("DP2, sharded optimizer", "llama", 2, "--use-distributed-optimizer"),
    Layout("tied, PP2", "tied", 2, PP2),
    Layout("experts: PP2", "experts", 2, PP2),
    Layout("experts: EP2", "experts", 2, EP2),
    Layout("experts: TP2 SP, expert TP2", "experts", 2, TP2_SP),
    Layout("experts: TP2 SP, expert TP1", "experts", 2, f"{TP2_SP} {ETP1}"),
    Layout("experts: TP2 SP EP2", "experts", 2, f"{TP2_SP} {EP2} {ETP1}"),
    Layout("mla: TP2 SP", "mla", 2, TP2_SP),
    Layout("mla: TP2", "mla", 2, TP2),
    Layout("mla: recomputed", "mla", 1, "--recompute-granularity selective --recompute-modules mla_up_proj"),
    Layout("bf16: TP2 SP, sharded optimizer", "llama bf16", 2, f"{TP2_SP} --use-distributed-optimizer"),
)


def run(name: str, model: str, ranks: int, *options: str) -> Run:
    return Run(name, ranks, tuple(shlex.split(" ".join((COMMON, MODELS[model], *options)))))


def trained(folder: Path, name: str, model: str, ranks: int, *options: str) -> Run:
    """Return a training of adapters on the base of a model."""
    where = f"--pretrained-checkpoint {folder}/{model.replace(' ', '_')}"
    return run(name, model, ranks, where, ADAPTERS, LENGTH, *options)


def base(folder: Path, model: str) -> Run:
    """Return a training of a whole model, whose checkpoint is the base."""
    where = folder / model.replace(" ", "_")
    return run(f"base of {model}", model, 1, f"--train-iters 1 --save {where} --save-interval 1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("lora")
    return made


@pytest.fixture(scope="module")
def curves(folder: Path) -> dict[str, Curve]:
    at_two = f"--load {folder}/saved --ckpt-step {SAVED_AT}"
    runs = [
        base(folder, "llama"),
        trained(folder, "whole", "llama", 1, f"--save {folder}/saved --save-interval {SAVED_AT}"),
        trained(folder, "resumed", "llama", 1, at_two),
        trained(folder, "continued as TP2", "llama", 2, at_two, FAST.options),
        trained(folder, FAST.name, "llama", 2, FAST.options),
    ]
    found = run_all(runs, folder / "runs")
    assert not any(curve.error for curve in found.values()), found
    return found


def is_equal(found: Curve, wanted: Curve, rough: bool = False) -> bool:
    """Return whether two trainings have the same losses and norms of gradients."""
    loss, norm = (5e-3, 2e-2) if rough else (1e-5, 1e-4)
    return found.losses == pytest.approx(wanted.losses, abs=loss) and found.grad_norms == pytest.approx(
        wanted.grad_norms, rel=norm
    )


def test_it_starts_from_the_base(curves: dict[str, Curve]) -> None:
    # A model of random weights has the loss ln 256; the base has learnt one step.
    assert curves["whole"].losses[0] < curves["base of llama"].losses[0] - 0.1
    assert len(curves["whole"].losses) == STEPS


def test_a_layout_computes_the_same_as_one_process(curves: dict[str, Curve]) -> None:
    assert is_equal(curves[FAST.name], curves["whole"]), curves


def test_a_resumed_training_has_the_same_losses_bit_for_bit(curves: dict[str, Curve]) -> None:
    assert curves["resumed"].losses == curves["whole"].losses[SAVED_AT:]
    assert curves["resumed"].grad_norms == curves["whole"].grad_norms[SAVED_AT:]


def test_another_layout_continues(curves: dict[str, Curve]) -> None:
    whole = curves["whole"]
    rest = Curve(whole.losses[SAVED_AT:], whole.grad_norms[SAVED_AT:])
    assert is_equal(curves["continued as TP2"], rest), curves


def test_a_checkpoint_holds_adapters_only_each_as_one_matrix_in_the_order_of_hugging_face(
    folder: Path, curves: dict[str, Curve]
) -> None:
    assert not curves["whole"].error
    where = folder / "saved" / folder_of(SAVED_AT)
    known = FileSystemReader(where).read_metadata().state_dict_metadata
    shapes = {name: tuple(one.size) for name, one in known.items() if isinstance(one, TensorStorageMetadata)}
    sizes = {
        "self_attention.linear_qkv": (32, {"q_proj": 32, "k_proj": 16, "v_proj": 16}),
        "self_attention.linear_proj": (32, {"o_proj": 32}),
        "mlp.linear_fc1": (32, {"gate_proj": 48, "up_proj": 48}),
        "mlp.linear_fc2": (48, {"down_proj": 32}),
    }
    adapters = {
        f"decoder.layers.{number}.{layer}.adapters.{part}.{matrix}.weight": shape
        for number in range(2)
        for layer, (inputs, parts) in sizes.items()
        for part, rows in parts.items()
        for matrix, shape in (("a", (RANK, inputs)), ("b", (rows, RANK)))
    }
    states = ("", "optimizer.state.exp_avg.", "optimizer.state.exp_avg_sq.")
    assert shapes == {f"{state}{name}": shape for state in states for name, shape in adapters.items()}
    of_base = (folder / "llama" / folder_of(1) / "__0_0.distcp").stat().st_size
    assert (where / "__0_0.distcp").stat().st_size < of_base / 2


@pytest.fixture(scope="module")
def slow_curves(folder: Path, curves: dict[str, Curve]) -> dict[str, Curve]:
    models = [name for name in MODELS if name != "llama"]
    runs = [base(folder, model) for model in models]
    runs += [trained(folder, f"one process: {model}", model, 1) for model in MODELS]
    runs += [trained(folder, one.name, one.model, one.ranks, one.options) for one in SLOW]
    return run_all(runs, folder / "more")


@pytest.mark.slow
@pytest.mark.parametrize("layout", SLOW, ids=lambda layout: layout.name)
def test_other_layouts_compute_the_same_as_one_process(layout: Layout, slow_curves: dict[str, Curve]) -> None:
    found, wanted = slow_curves[layout.name], slow_curves[f"one process: {layout.model}"]
    assert not wanted.error
    assert not found.error
    assert is_equal(found, wanted, rough="bf16" in layout.model), (found, wanted)


@pytest.mark.slow
def test_the_balance_of_experts_stays_that_of_the_base(folder: Path, slow_curves: dict[str, Curve]) -> None:
    """A bias that moved would begin again with the base's values in a run that resumes."""
    more = f"--save {folder}/saved_experts --save-interval {SAVED_AT}"
    at_two = f"--load {folder}/saved_experts --ckpt-step {SAVED_AT}"
    runs = [
        trained(folder, "experts, saved", "experts", 1, more),
        trained(folder, "experts, resumed", "experts", 1, at_two),
        trained(folder, "experts, continued as EP2", "experts", 2, at_two, EP2),
    ]
    whole, resumed, continued = run_all(runs, folder / "experts_again").values()
    rest = Curve(whole.losses[SAVED_AT:], whole.grad_norms[SAVED_AT:])
    assert whole.losses == slow_curves["one process: experts"].losses
    assert resumed == rest, resumed
    assert is_equal(continued, rest), (continued, rest)


@pytest.mark.slow
def test_dropout_is_the_same_with_a_sequence_in_one_part(folder: Path, curves: dict[str, Curve]) -> None:
    """Ranks with the same input have to drop the same of it: otherwise their A become different."""
    options = "--lora-dropout 0.3 --lora-targets q_proj k_proj v_proj gate_proj up_proj"
    layouts = (("1", 1, ""), ("TP2", 2, TP2))
    runs = [trained(folder, f"dropout {name}", "llama", ranks, options, one) for name, ranks, one in layouts]
    one, two = run_all(runs, folder / "dropout").values()
    assert not one.error
    assert is_equal(two, one), (one, two)
    assert one.losses[1:] != curves["whole"].losses[1:]


@pytest.mark.slow
def test_what_is_not_the_base_is_refused_in_words(folder: Path, curves: dict[str, Curve]) -> None:
    assert curves["whole"].losses
    runs = [
        base(folder / "other", "llama"),
        trained(folder / "other", "another base", "llama", 1, f"--load {folder}/saved"),
        trained(folder, "another rank", "llama", 1, f"--load {folder}/saved --lora-rank 4 --lora-alpha 8"),
        trained(folder / "none", "no base", "llama", 1),
        run("no adapters", "llama", 1, f"--load {folder}/saved {LENGTH}"),
        run("adapters as a base", "llama", 1, f"--pretrained-checkpoint {folder}/saved {ADAPTERS} {LENGTH}"),
    ]
    found = run_all(runs, folder / "refused")
    assert not found["base of llama"].error
    for name, says in (
        ("another base", "has the adapters of another base than"),
        ("another rank", f"`lora_rank` is 4, but the checkpoint {folder}/saved/iter_0000004 was trained"),
        ("no base", "no checkpoint of a base in"),
        ("no adapters", f"holds only adapters of rank {RANK}, not their base"),
        ("adapters as a base", "merge them into the base first"),
    ):
        assert says in found[name].error, found[name].error
