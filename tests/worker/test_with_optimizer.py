"""`finetune_with_optim`: a new training with the weights and the optimizer's state of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flagscale_testing.conversations import drawn, write_conversations
from flagscale_testing.ranks.conversations import PROGRAM as CONVERSATIONS
from flagscale_testing.ranks.forked import Curve, Run, run_all
from flagscale_testing.ranks.training import MOCK_DATA, MODEL, read_metrics, saving

pytestmark = pytest.mark.filterwarnings("ignore")
NEW = ("--train-iters", "3", "--lr", "5e-3", "--weight-decay", "0.2", "--save-interval", "3")


def dump_states() -> None:
    """Make a rank write the optimizer's state before and after the training (a mutation of a run)."""
    import torch
    from megatron.training import get_args, training

    original = training.train

    def states(optimizer: Any) -> list[dict[str, torch.Tensor]]:
        parts = getattr(optimizer, "chained_optimizers", [optimizer])
        return [dict(state) for part in parts for state in part.optimizer.state.values()]

    def train(step: Any, model: Any, optimizer: Any, *others: Any, **named: Any) -> Any:
        args = get_args()
        folder = Path(args.metrics_file).parent
        begin = {"iteration": args.iteration, "samples": args.consumed_train_samples}
        torch.save({**begin, "states": states(optimizer)}, folder / f"before_{args.rank}.pt")
        done = original(step, model, optimizer, *others, **named)
        torch.save({"states": states(optimizer)}, folder / f"after_{args.rank}.pt")
        return done

    training.train = train


MUTATION = f"{__name__}:dump_states"


def load(path: Path) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = torch.load(path)
    return found


@pytest.mark.parametrize(
    "layout", [(), pytest.param(("--tensor-model-parallel-size", "2", "--bf16"), marks=pytest.mark.slow)]
)
def test_state_is_loaded_and_everything_else_begins_again(tmp_path: Path, layout: tuple[str, ...]) -> None:
    import torch

    ranks, old, new = len(layout) // 3 + 1, tmp_path / "old", tmp_path / "new"
    model = (*MODEL, *MOCK_DATA, *layout, "--num-layers", "1")
    from_old = (*NEW, "--train-iters", "2", "--load", str(old), "--save", str(new))
    first = Run("first", ranks, (*model, *saving(old), "--train-iters", "2"), mutation=MUTATION)
    both = Run("both", ranks, (*model, *from_old, "--finetune-with-optim"), mutation=MUTATION)
    weights = Run("weights", ranks, (*model, *from_old, "--save", str(tmp_path / "other"), "--finetune"))
    curves = run_all([first, both, weights], tmp_path)
    assert {name: curve.error for name, curve in curves.items()} == dict.fromkeys(curves, "")

    for rank in range(ranks):
        begin = load(tmp_path / "both" / f"before_{rank}.pt")
        assert (begin["iteration"], begin["samples"]) == (0, 0)
        expected = load(tmp_path / "first" / f"after_{rank}.pt")["states"]
        assert len(begin["states"]) == len(expected) > 0
        for found, saved in zip(begin["states"], expected, strict=True):
            for name in ("exp_avg", "exp_avg_sq", "step"):
                assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(saved[name])), name
            assert found["exp_avg"].abs().sum() > 0

    records = read_metrics(tmp_path / "both" / "metrics.jsonl")
    assert [record["iteration"] for record in records] == [1, 2]
    assert [record["consumed_samples"] for record in records] == [8, 16]
    assert [record["learning_rate"] for record in records] == [5e-3] * 2
    # The same weights and samples, but other updates.
    assert curves["both"].losses[0] == curves["weights"].losses[0]
    assert curves["both"].losses[1] != curves["weights"].losses[1]


@pytest.mark.slow
def test_instruction_tuning_starts_with_the_state_of_a_training_on_text(tmp_path: Path) -> None:
    import torch

    path = write_conversations(tmp_path / "train", drawn(24))
    data = ("--train-data-path", path, "--tokenizer-type", "NullTokenizer", "--vocab-size", "255")
    data = (*data, "--calculate-per-token-loss")
    start = ("--pretrained-checkpoint", str(tmp_path / "old"), "--finetune-with-optim")
    two = ("--train-iters", "2")
    runs = [
        Run("old", 1, (*MODEL, *MOCK_DATA, *saving(tmp_path / "old"), *two), mutation=MUTATION),
        Run("tuned", 1, (*MODEL, *data, *saving(tmp_path / "new"), *NEW, *start), CONVERSATIONS, MUTATION),
    ]
    curves = run_all(runs, tmp_path)
    assert (curves["old"].error, curves["tuned"].error) == ("", "")
    begin = load(tmp_path / "tuned" / "before_0.pt")
    assert begin["iteration"] == 0
    expected = load(tmp_path / "old" / "after_0.pt")["states"]
    assert len(begin["states"]) == len(expected) > 0
    for found, saved in zip(begin["states"], expected, strict=True):
        assert torch.equal(found["exp_avg"], saved["exp_avg"])
    assert len(curves["tuned"].losses) == 3


@pytest.mark.slow
def test_the_first_start_loads_it_and_later_ones_continue(tmp_path: Path) -> None:
    """The settings are those of the new run from the first step on: the same as with `load`."""
    old, new = tmp_path / "old", tmp_path / "new"
    model = (*MODEL, *MOCK_DATA)
    own = (*NEW, "--save", str(new), "--load", str(new), "--finetune-with-optim")
    own = (*own, "--pretrained-checkpoint", str(old))
    once = (*NEW, "--train-iters", "5", "--load", str(old), "--finetune-with-optim")
    runs = [
        Run("nothing", 1, (*model, *own[:-2], "--load", str(tmp_path / "nothing"))),
        Run("old", 1, (*model, *saving(old))),
        Run("once", 1, (*model, *once)),
        Run("start", 1, (*model, *own)),
        Run("again", 1, (*model, *own, "--train-iters", "5", "--override-opt_param-scheduler")),
    ]
    curves: dict[str, Curve] = run_all(runs, tmp_path)
    assert "`finetune_with_optim`: no checkpoint in" in curves["nothing"].error
    assert curves["start"].error == curves["again"].error == curves["once"].error == ""
    assert (*curves["start"].losses, *curves["again"].losses) == curves["once"].losses
    assert [len(curves[name].losses) for name in ("start", "again")] == [3, 2]


@pytest.mark.slow
def test_a_state_that_is_missing_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = [word for word in (*MODEL, *MOCK_DATA) if word != "--use-distributed-optimizer"]
    argv = (*model, *saving(tmp_path / "old"), "--train-iters", "3")
    start = (*argv, "--finetune-with-optim", "--save", str(tmp_path / "new"))
    weights = (*model, *saving(tmp_path / "weights"), "--train-iters", "3", "--no-save-optim")
    runs = [
        Run("old", 1, argv),
        Run("weights", 1, weights),
        Run("sgd", 1, (*start, "--optimizer", "sgd", "--weight-decay", "0")),
        Run("wide", 1, (*start, "--hidden-size", "128")),
        Run("nothing", 1, (*start, "--load", str(tmp_path / "weights"))),
    ]
    curves = run_all(runs, tmp_path)
    assert curves["old"].error == curves["weights"].error == ""
    message = '`optimizer` is "sgd", but the checkpoint'
    assert message in curves["sgd"].error
    assert "or set `finetune: true` to start without the optimizer's state" in curves["sgd"].error
    assert "`hidden_size` is 128, but the checkpoint" in curves["wide"].error
    assert "has no state of an optimizer: use `finetune: true`" in curves["nothing"].error
