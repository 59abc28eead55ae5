"""The rules between Megatron's arguments: each has an example, and reports it in one message."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from flagscale.checks import (
    blend_rules,
    context,
    data,
    degrees,
    experts,
    gemma,
    latent,
    layers,
    lora,
    loss_masks,
    megatron,
    norms,
    picture_data,
    pictures,
    pipeline,
    pretrained,
    recompute,
    recorded,
    resume,
    saving,
    sft,
    stablelm2,
    steering,
    tracing,
    tracking,
    validation,
    vocabulary,
    worker,
)
from flagscale.checks.hetero import rules as hetero
from flagscale.config.catalog import Catalog
from flagscale.errors import UserError
from tests.unit import (
    test_blend,
    test_degrees,
    test_hetero_layout,
    test_lora,
    test_pictures,
    test_pretrained,
    test_recompute,
    test_resume,
    test_sft,
    test_validation,
    test_vocabulary,
)
from tests.unit.rules import OF_THE_ENGINE, SHARED, Example

REMARKED: list[dict[str, Any]] = [
    {"sequence_parallel": True},
    {"cp_comm_type": ["a2a"]},
    {"recompute_modules": ["mlp"]},
    {"mtp_loss_scaling_factor": 0.3},
    {"num_experts": 2},
    {"data_path": ["text"]},
    {"lr_decay_stablelm2_beta": 1.0},
    {"bad_loss_window": 10},
    {"max_rollbacks": 5},
    {"skip_iters_range": "[10, 12]"},
    {"profile": True, "use_pytorch_profiler": True, "profile_step_end": 100},
    {
        "train_iters": 100,
        "profile": True,
        "use_pytorch_profiler": True,
        "profile_step_end": 100,
    },
    {"multi_latent_attention": True, "kv_channels": 16},
    {
        "mtp_num_layers": 1,
        "position_embedding_type": "rope",
        "recompute_granularity": "full",
        "recompute_method": "block",
        "recompute_num_layers": 1,
    },
]
MODULES = (
    blend_rules,
    context,
    data,
    degrees,
    experts,
    gemma,
    latent,
    layers,
    loss_masks,
    lora,
    megatron,
    norms,
    picture_data,
    pictures,
    pipeline,
    pretrained,
    recompute,
    resume,
    saving,
    sft,
    stablelm2,
    steering,
    tracing,
    tracking,
    validation,
    vocabulary,
    worker,
    hetero,
)
"""The modules whose every rule must have an example."""


@pytest.mark.parametrize("example", [*OF_THE_ENGINE, *SHARED], ids=str)
def test_a_broken_rule_is_reported_once(example: Example) -> None:
    problems = example.report()
    assert len({problem.where for problem in problems}) == 1
    # Twice for the two files of a data prefix.
    assert all(example.says in problem.what for problem in problems)


@pytest.mark.parametrize("example", [one for one in SHARED if one.platform == "cpu"], ids=str)
def test_rules_of_the_cpu_apply_only_there(example: Example) -> None:
    assert Example(example.changes, "").report() == []


def test_the_async_strategy_matters_only_with_async_save() -> None:
    assert Example({"async_strategy": "nvrx"}, "", "cpu").report() == []


@contextmanager
def reported() -> Iterator[tuple[set[tuple[Path, int]], dict[str, set[str]]]]:
    """Record what is yielded meanwhile: the lines in `MODULES`, and the blamed arguments by function."""
    lines: set[tuple[Path, int]] = set()
    blamed: dict[str, set[str]] = defaultdict(set)
    files = {str(module.__file__) for module in MODULES}

    def record(code: CodeType, offset: int, value: object) -> object:
        if code.co_filename not in files:
            return sys.monitoring.DISABLE
        line = [*code.co_positions()][offset // 2][0]
        lines.add((Path(code.co_filename), line or 0))
        if isinstance(value, tuple):
            blamed[code.co_name].add(value[0])
        return None

    tool, event = 4, sys.monitoring.events.PY_YIELD
    sys.monitoring.use_tool_id(tool, __name__)
    sys.monitoring.register_callback(tool, event, record)
    sys.monitoring.set_events(tool, event)
    try:
        yield lines, blamed
    finally:
        sys.monitoring.set_events(tool, 0)
        sys.monitoring.free_tool_id(tool)


def test_every_rule_has_an_example(
    catalog: Catalog,
    build: test_hetero_layout.Build,
    tmp_path: Path,
    write_data: test_blend.Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = test_resume.run_of(catalog)
    defaults = {option.dest: option.default for option in catalog.options.values()} | test_degrees.TASK
    with reported() as (lines, blamed):
        for example in (*OF_THE_ENGINE, *SHARED):
            example.report()
        for ranks, short, *_ in test_degrees.BAD:
            list(degrees.violations(test_degrees.values_of(defaults, short), ranks))
        for case, _ in test_recompute.BAD:
            changes = {"value": []} | case
            test_recompute.found(**{test_recompute.GRANULARITY: changes.pop("value")}, **changes)
        for ranks, changes, _ in test_hetero_layout.WRONG:
            with pytest.raises(UserError):
                build({"hetero_process_meshes": test_hetero_layout.FLAT, **changes}, ranks=ranks)
        for changes, *_ in test_lora.WRONG:
            list(lora.lora_violations(test_lora.GOOD | changes))
        for changes, *_ in test_pretrained.WRONG:
            test_pretrained.found(changes, tmp_path)
        test_pretrained.test_a_base_that_computes_something_else()
        for before, now, *_ in test_lora.OF_OTHERS:
            saved = resume.Saved("the checkpoint", {**test_lora.RUN, **before})
            list(resume.resume_violations(saved, test_lora.RUN | now))
        for values, _ in test_validation.WRONG:
            list(validation.validation_violations(values))
        for number in ("[[1, 4, 0]]", "[[1, 4, 9]]", "[[1, 4, -1]]"):
            test_recompute.found(**{test_recompute.NUM_LAYERS: number})
        typed = test_hetero_layout.layout(
            process_meshes=test_hetero_layout.FLAT, device_types=["A800", "H800"]
        )
        list(hetero.host_violations(typed, ["cpu", "cpu", "A800", "A800"], {"cpu"}))
        without_fused = worker.Capabilities(has_chip=True, has_fused_layers=False, backend="nccl")
        list(worker.worker_violations([defaults], without_fused))
        masked = {**defaults, loss_masks.SEPARATE: True}
        list(worker.worker_violations([masked], without_fused, [worker.DATASETS]))
        list(data.input_violations({"models": [], "prompts_file": "nowhere"}))
        list(
            data.input_violations(
                {"models": [], "pictures": {"mode": "understand", "images": ("nowhere.png",)}}
            )
        )
        list(tracing.traced_rank_violations({"profile_ranks": [4]}, 4))
        for keys, *_ in test_blend.WRONG:
            test_blend.found(keys, tmp_path, write_data)
        test_vocabulary.test_recorded_ids_beyond_the_vocabulary(tmp_path / "1", write_data)
        test_vocabulary.test_data_of_another_tokenizer_with_the_same_size(tmp_path / "2", write_data)
        test_vocabulary.test_a_tokenizer_that_cannot_be_read(tmp_path / "3", write_data)
        test_vocabulary.test_a_scan_that_takes_a_while_is_announced(tmp_path / "4", write_data, monkeypatch)
        for changes, *_ in (*test_resume.WRONG, *test_resume.NOTICED):
            saved = resume.Saved("the checkpoint", recorded.record(run, "data", "tokenizer"))
            list(resume.resume_violations(saved, run | changes))
            list(resume.resume_notices(saved, run | changes))
        list(resume.resume_violations(saved, run | test_resume.OF_PICTURES))
        of_pictures = test_pictures.values_of(catalog)
        for changes, *_ in test_pictures.WRONG:
            list(pictures.picture_violations(of_pictures | changes))
        list(pictures.size_violations(of_pictures, ["img_h"]))
        (tmp_path / "5").mkdir()
        sound = test_pictures.with_data(of_pictures, tmp_path / "5")
        for changes, *_ in test_pictures.WRONG_DATA:
            test_pictures.found(sound | changes, tmp_path / "5")
        list(picture_data.picture_remarks(sound | test_pictures.TILED))
        test_pictures.test_the_largest_picture_has_to_fit_a_sequence(sound, tmp_path / "5")
        test_pictures.test_a_tokenizer_without_a_template_or_that_cannot_be_read(sound, tmp_path / "5")
        for changes, *_ in test_sft.WRONG:
            list(sft.sft_violations(test_sft.values_of(catalog) | changes))
        test_sft.test_conversations_longer_than_a_sample(tmp_path / "6")
        test_sft.test_only_pairs_of_conversations_in_files(tmp_path / "6", write_data)
        for number, (spoil, says) in enumerate(test_sft.BROKEN):
            test_sft.test_masks_that_do_not_fit(tmp_path / f"7{number}", spoil, says)
        test_sft.test_the_samples_of_the_training_are_announced(tmp_path / "8")
        test_sft.test_masks_that_a_pretraining_reads(tmp_path / "8", *test_sft.BROKEN[-1])
        test_sft.test_a_pretraining_names_data_without_masks(tmp_path / "9", write_data)
        for changes in REMARKED:
            list(megatron.remarks(defaults | changes, changes))
        list(vocabulary.tokenizer_remarks({"tokenizer_type": "NullTokenizer", "vocab_extra_ids": 1}))
    rules = {
        (Path(str(module.__file__)), node.lineno)
        for module in MODULES
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text()))
        if isinstance(node, ast.Yield)
    }
    missing = [f"{path.name}:{line}" for path, line in sorted(rules - lines)]
    assert not missing, f"rules without an example in tests/unit/rules.py: {missing}"
    # Rules that are rows of a table share a line.
    for function, table in (
        ("rule_violations", megatron._REQUIRED),
        ("_number_violations", megatron.LEAST),
        ("program_violations", megatron.NOT_SUPPORTED),
        ("cpu_violations", layers.NEEDS_CHIP),
        ("torch_violations", layers.TORCH_IGNORES),
        ("_with_mla", latent.NOT_WITH_MLA),
        ("latent_violations", latent.ONLY_WITH_MLA),
        ("latent_violations", latent.ONLY_WITH_YARN),
        ("_unsupported", hetero.UNSUPPORTED),
        ("picture_violations", pictures.REFUSED),
    ):
        assert not set(table) - blamed[function], function


def test_the_values_without_effect_are_the_defaults_of_the_engine(catalog: Catalog) -> None:
    defaults = {option.dest: option.default for option in catalog.options.values()}
    known = {**latent.ONLY_WITH_MLA, **latent.ONLY_WITH_YARN}
    assert known == {name: defaults[name] for name in known}
