"""Adapters are trained on a Hugging Face folder, exported, and computed by `peft` on transformers."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from flagscale.run.checkpoints import folder_of, read_arguments
from flagscale_testing.conversion import CASES, VOCAB, task_argv
from flagscale_testing.ranks.forked import Curve, Run, run_all
from flagscale_testing.ranks.layouts import TP2
from megatron.flagscale.convert.adapter_conversion import export_adapter
from megatron.flagscale.convert.torch_dist_reader import StoredTensors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),  # the first test of each case waits for its trainings
]
Models = Callable[[str], Path]
STEPS = 2
LAYOUTS = {"Qwen2, 2.5": TP2, "Mixtral": f"{TP2} --sequence-parallel"}
LENGTH = f"--train-iters {STEPS} --save-interval {STEPS} --lr 1e-1 --lr-decay-style constant"
COMMON = f"""--mock-data --tokenizer-type NullTokenizer --seq-length 32
    --micro-batch-size 2 --global-batch-size 2 --log-interval 1 --eval-iters 0 --num-workers 0 {LENGTH}"""
ADAPTERS = "--lora-rank 4 --lora-alpha 8"


@dataclass(frozen=True)
class Trained:
    """Trainings of one model: `from_hf` and `from_megatron` in `folder`, and the logits of the first."""

    folder: Path
    curves: dict[str, Curve]
    tokens: torch.Tensor

    def adapters(self, name: str) -> dict[str, torch.Tensor]:
        stored = StoredTensors(self.folder / name / folder_of(STEPS))
        return {one: stored.whole(one) for one in stored.shapes()}

    def base(self, name: str) -> object:
        arguments = read_arguments(self.folder / name / folder_of(STEPS))
        assert arguments
        return arguments["lora_base"]


@pytest.fixture(scope="module")
def trained(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Return the trainings of a case; done once."""
    made: dict[str, Trained] = {}

    def train(name: str) -> Trained:
        if name not in made:
            made[name] = _train(name, models(name), tmp_path_factory.mktemp("from_hf"))
        return made[name]

    return train


def _train(name: str, model: Path, folder: Path) -> Trained:
    case = task_argv(model / "megatron", CASES[name])
    tokens = torch.randint(3, VOCAB - 1, (2, 32), generator=torch.Generator().manual_seed(1))
    torch.save({"tokens": tokens, "pictures": None}, folder / "tokens.pt")
    converted = f"--converted-dir {folder}/converted"
    runs = []
    for kind, base in (("from_hf", f"{model}/hf {converted}"), ("from_megatron", f"{model}/megatron")):
        where = f"--pretrained-checkpoint {base} --save {folder}/{kind}"
        runs.append(Run(kind, 2, (*case, *shlex.split(f"{COMMON} {LAYOUTS[name]} {ADAPTERS} {where}"))))
    where = f"--pretrained-checkpoint {model}/hf {converted} --load {folder}/from_hf --finetune --skip-train"
    files = (f"{folder}/tokens.pt", f"{folder}/logits.pt")
    forward = "megatron.flagscale.convert.forward:main"
    runs.append(Run("logits", 1, (*files, *case, *shlex.split(f"{COMMON} {ADAPTERS} {where}")), forward))
    curves = run_all(runs, folder / "runs")
    assert not any(curve.error for curve in curves.values()), curves
    return Trained(folder, curves, tokens)


@pytest.mark.parametrize("name", LAYOUTS)
def test_adapters_are_the_same_as_on_the_converted_checkpoint(
    name: str, trained: Callable[[str], Trained]
) -> None:
    found = trained(name)
    assert len(found.curves["from_hf"].losses) == STEPS
    assert found.curves["from_hf"] == found.curves["from_megatron"]
    ours, theirs = found.adapters("from_hf"), found.adapters("from_megatron")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[one], theirs[one]) for one in ours)
    # Each can continue on the base of the other.
    assert found.base("from_hf") == found.base("from_megatron")


@pytest.mark.parametrize("name", LAYOUTS)
def test_two_ranks_and_a_later_start_share_one_conversion(
    name: str, trained: Callable[[str], Trained]
) -> None:
    found = trained(name)
    kept = [one for one in (found.folder / "converted").iterdir() if one.is_dir()]
    assert len(kept) == 1
    outputs = {one: (found.folder / "runs" / one / "output").read_text() for one in ("from_hf", "logits")}
    assert [text.count("flagscale: converting") for text in outputs.values()] == [1, 0]
    assert "flagscale: converted 0.00 of 0.00 GB" in outputs["from_hf"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_peft_computes_the_trained_model(
    name: str, models: Models, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed (make test installs it)")
    import transformers

    found = trained(name)
    export_adapter(found.folder / "from_hf", tmp_path / "peft", base=models(name) / "hf")
    kind = getattr(transformers, f"{CASES[name].config}ForCausalLM")
    with torch.no_grad():
        base = kind.from_pretrained(models(name) / "hf", dtype=torch.float32)
        plain = base(found.tokens).logits
        expected = peft.PeftModel.from_pretrained(base, tmp_path / "peft")(found.tokens).logits
    ours = torch.load(found.folder / "logits.pt", weights_only=True)[..., :VOCAB]
    largest = expected.abs().max()
    assert (ours - expected).abs().max() < 1e-5 * largest
    assert (plain - expected).abs().max() > 1e-2 * largest


def test_a_training_of_all_weights_starts_from_the_folder_and_then_continues(
    models: Models, tmp_path: Path
) -> None:
    """Once it has a checkpoint of its own, neither the folder nor its conversion is needed."""
    model = models("Qwen2, 2.5")
    case, own = (
        task_argv(model / "megatron", CASES["Qwen2, 2.5"]),
        f"--save {tmp_path}/own --load {tmp_path}/own",
    )
    from_hf = f"--pretrained-checkpoint {model}/hf --converted-dir {tmp_path}"
    runs = {
        "from_hf": f"{from_hf}/converted {own}",
        "from_megatron": f"--pretrained-checkpoint {model}/megatron --save {tmp_path}/other",
        "continued": f"{from_hf}/again {own} --train-iters {STEPS + 1} --override-opt_param-scheduler",
    }
    argv = {name: (*case, *shlex.split(f"{COMMON} {options}")) for name, options in runs.items()}
    curves = run_all([Run(name, 1, words) for name, words in argv.items()], tmp_path / "runs")
    assert not any(curve.error for curve in curves.values()), curves
    assert curves["from_hf"] == curves["from_megatron"]
    assert len(curves["continued"].losses) == 1
    assert not (tmp_path / "again").exists()
