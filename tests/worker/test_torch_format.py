"""`ckpt_format: torch`: what is saved resumes exactly; another layout or format is refused in one line."""

from __future__ import annotations

import resource
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flagscale.errors import UserError
from flagscale.run.checkpoints import TRACKER
from flagscale.run.manifest import MANIFEST, RANK_FILE, candidates, fault_of
from flagscale_testing.ranks.forked import Curve, Run, run_all
from flagscale_testing.ranks.layouts import MODELS, PP2, TP2
from megatron.flagscale.checkpoint.choice import choose
from megatron.flagscale.checkpoint.torch_format import check_names, first_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),  # the first test of a fixture waits for all its trainings
]
STEPS, SAVED_AT = 4, 2
OLD, ZERO, EP2 = "--ckpt-format torch", "--use-distributed-optimizer", "--expert-model-parallel-size 2"
SPLIT_EXPERTS = f"{EP2} {TP2} --sequence-parallel --expert-tensor-parallel-size 1"

# Name: model, ranks, options. Each run saves twice; another one continues a copy of its first checkpoint.
SAVED = {
    "one": ("llama", 1, OLD),
    "TP2": ("llama", 2, f"{TP2} {OLD}"),
    "PP2": ("llama", 2, f"{PP2} {OLD}"),
    "bf16, distributed optimizer": ("llama bf16", 1, f"{ZERO} {OLD}"),
    "EP2 bf16, distributed optimizer": ("moe", 2, f"{EP2} --bf16 {ZERO} {OLD}"),
    "experts split otherwise": ("moe", 2, f"{SPLIT_EXPERTS} {OLD}"),
    "torch_dist": ("llama", 1, ""),
}
AS_DIST = "bf16, distributed optimizer"
INTERLEAVED = f"{PP2} --num-virtual-stages-per-pipeline-rank 2"

# Checkpoint, model, ranks, options, and part of the message.
REFUSED = (
    ("TP2", "llama", 1, OLD, "tensor_model_parallel_size 2 (this run: 1). Restore the layout"),
    ("PP2", "llama", 2, f"{TP2} {OLD}", "pipeline_model_parallel_size 2 (this run: 1)"),
    ("PP2", "llama", 2, f"{INTERLEAVED} {OLD}", "virtual_pipeline_model_parallel_size None (this run: 2)"),
    ("TP2", "llama", 1, "", "with `ckpt_format: torch_dist` until it saves: every layout can load that"),
    ("torch_dist", "llama", 1, OLD, "set `ckpt_format: torch_dist`, or remove the key"),
    ("one", "qk norm", 1, OLD, "`qk_layernorm` is true, but the checkpoint"),
    (AS_DIST, "llama bf16", 1, OLD, "saved with `use_distributed_optimizer: true`"),
    (AS_DIST, "llama", 1, ZERO, "an fp32 model cannot load the state of its distributed optimizer"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torch")


def run(name: str, model: str, ranks: int, options: str, saved: Path) -> Run:
    paths = ("--save", str(saved), "--load", str(saved), "--save-interval", str(SAVED_AT))
    argv = (*MODELS[model], "--train-iters", str(STEPS), *shlex.split(options), *paths)
    return Run(name, ranks, argv)


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Curve]:
    """Run each of `SAVED` to its end."""
    return run_all([run(name, *how, folder / name) for name, how in SAVED.items()], folder / "whole")


@pytest.fixture(scope="module")
def interrupted(folder: Path, whole: dict[str, Curve]) -> Callable[[str], Path]:
    """Return a function that copies the checkpoints of a run as if it had ended after the first one."""
    made: list[Path] = []

    def copy(name: str) -> Path:
        target = Path(shutil.copytree(folder / name, folder / f"copy {len(made)}"))
        shutil.rmtree(target / f"iter_{STEPS:07d}")
        (target / TRACKER).write_text(str(SAVED_AT))
        made.append(target)
        return target

    return copy


@pytest.fixture(scope="module")
def continued(folder: Path, interrupted: Callable[[str], Path]) -> dict[str, Curve]:
    runs = [run(name, *how, interrupted(name)) for name, how in SAVED.items()]
    model, ranks, _ = SAVED[AS_DIST]
    runs.append(run("as torch_dist", model, ranks, ZERO, interrupted(AS_DIST)))
    return run_all(runs, folder / "continued")


@pytest.mark.parametrize("name", SAVED)
def test_a_run_resumes_exactly(name: str, whole: dict[str, Curve], continued: dict[str, Curve]) -> None:
    assert not whole[name].error + continued[name].error
    assert continued[name].losses == whole[name].losses[SAVED_AT:]
    assert continued[name].grad_norms == whole[name].grad_norms[SAVED_AT:]


def test_the_layout_that_saved_it_can_turn_it_into_torch_dist(
    whole: dict[str, Curve], continued: dict[str, Curve]
) -> None:
    assert not continued["as torch_dist"].error
    assert continued["as torch_dist"].losses == whole[AS_DIST].losses[SAVED_AT:]


def test_every_save_has_a_manifest(folder: Path, whole: dict[str, Curve]) -> None:
    for name in SAVED:
        for iteration in (SAVED_AT, STEPS):
            saved = folder / name / f"iter_{iteration:07d}"
            assert (saved / MANIFEST).is_file()
            assert fault_of(saved) == ""


@pytest.fixture(scope="module")
def refused(folder: Path, interrupted: Callable[[str], Path]) -> list[Curve]:
    runs = [
        run(str(number), model, ranks, options, interrupted(name))
        for number, (name, model, ranks, options, _) in enumerate(REFUSED)
    ]
    return list(run_all(runs, folder / "refused").values())


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=lambda number: REFUSED[number][-1])
def test_what_cannot_be_loaded_is_refused(number: int, refused: list[Curve]) -> None:
    assert not refused[number].losses
    assert "UserError" in refused[number].error
    assert REFUSED[number][-1] in refused[number].error


def test_the_optimizer_of_another_iteration_is_not_loaded(folder: Path, whole: dict[str, Curve]) -> None:
    model, ranks, options = SAVED[AS_DIST]
    chosen = run("older", model, ranks, f"{options} --ckpt-step {SAVED_AT}", folder / AS_DIST)
    error = run_all([chosen], folder / "chosen")["older"].error
    assert "only the iteration in latest_checkpointed_iteration.txt (4) can be loaded" in error


def test_a_file_that_the_engine_cannot_read_is_not_a_success(
    folder: Path, interrupted: Callable[[str], Path]
) -> None:
    foreign = interrupted("one")
    file = foreign / f"iter_{SAVED_AT:07d}" / "mp_rank_00" / RANK_FILE
    (file.parent.parent / MANIFEST).unlink()
    content = torch.load(file, weights_only=False)
    content["args"].of_another_package = Fraction(1, 2)
    torch.save(content, file)
    model, ranks, options = SAVED["one"]
    curve = run_all([run("foreign", model, ranks, options, foreign)], folder / "foreign")["foreign"]
    assert not curve.losses
    assert "the checkpoint could not be loaded; see the output above" in curve.error


def small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


def test_a_full_disk_is_reported_in_one_line(tmp_path: Path) -> None:
    model, ranks, options = SAVED["TP2"]
    limited = replace(
        run("full", model, ranks, options, tmp_path / "saved"), mutation=f"{__name__}:small_files"
    )
    error = run_all([limited], tmp_path)["full"].error
    assert "the checkpoint of iteration 2 could not be written" in error
    assert "File too large" in error
    assert not (tmp_path / "saved" / TRACKER).exists()


def rank_file(folder: Path) -> None:
    (folder / "mp_rank_00").mkdir(parents=True)
    (folder / "mp_rank_00" / RANK_FILE).write_bytes(b"")


def test_without_a_manifest_the_tracker_shows_what_is_complete(tmp_path: Path) -> None:
    for iteration in (2, 4, 6):
        rank_file(tmp_path / f"iter_{iteration:07d}")
    (tmp_path / TRACKER).write_text("4")
    found = {one.iteration: (one.fault, one.unfinished) for one in candidates(tmp_path)}
    assert found[2] == found[4] == ("", False)
    fault = f"in Megatron's `torch` format, and {TRACKER} does not show that its save was finished"
    assert found[6] == (fault, True)
    with pytest.raises(UserError, match=r"iteration 6 .* cannot be used: in Megatron's `torch` format"):
        choose(tmp_path, owned=False, wanted=6)


def test_an_unfinished_checkpoint_is_kept_under_another_name(tmp_path: Path) -> None:
    for iteration in (2, 4):
        rank_file(tmp_path / f"iter_{iteration:07d}")
    (tmp_path / TRACKER).write_text("2")
    choice = choose(tmp_path, owned=True)
    assert choice.iteration == 2
    assert "renamed to iter_0000004.unfinished" in choice.notices[0]
    assert (tmp_path / "iter_0000004.unfinished" / "mp_rank_00" / RANK_FILE).is_file()


def test_a_training_does_not_silently_start_over_beside_a_checkpoint(tmp_path: Path) -> None:
    rank_file(tmp_path / "iter_0000002")
    with pytest.raises(UserError, match=r"iter_0000002: in Megatron's `torch` format, and latest_check"):
        choose(tmp_path, owned=False)
    (tmp_path / TRACKER).write_text("2")
    assert choose(tmp_path, owned=False).iteration == 2


def test_a_release_is_usable_if_the_tracker_names_it(tmp_path: Path) -> None:
    rank_file(tmp_path / "release")
    (tmp_path / TRACKER).write_text("release")
    assert choose(tmp_path, owned=False).iteration is None
    (tmp_path / "release" / MANIFEST).write_text("{}")
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        choose(tmp_path, owned=False)


def test_tensors_of_other_names_are_not_left_out(folder: Path, whole: dict[str, Curve]) -> None:
    file = first_file(folder / "one" / f"iter_{SAVED_AT:07d}")
    names = [*torch.load(file, weights_only=False)["model"]]
    check_names(file, [SimpleNamespace(state_dict_for_save_checkpoint=lambda: dict.fromkeys(names))])
    renamed = [*names[1:], "decoder.other"]
    with pytest.raises(UserError, match="2 tensors of `model` are not the same as in this run's model"):
        check_names(file, [SimpleNamespace(state_dict_for_save_checkpoint=lambda: dict.fromkeys(renamed))])
