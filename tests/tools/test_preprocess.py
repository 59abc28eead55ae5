"""Preprocessing: all tokens in order, a kill loses no work, partial or foreign files are never used."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy
import pytest
from tokenizers import Tokenizer

from flagscale.checks import indexed
from flagscale.checks.facts import facts, facts_path
from flagscale.checks.tokenizer import fingerprint, vocabulary
from flagscale.errors import UserError
from flagscale_testing.pairs import documents_in
from megatron.flagscale.tokenizer import ids_of
from tools.datasets import parts
from tools.datasets.documents import Document, Source, open_source
from tools.datasets.preprocess import prepare
from tools.datasets.train_tokenizer import EOS

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [f"document {number}: " + "naïve 数\n" * (number % 7) for number in range(25)] + [
    "ends <|endoftext|> not here"
]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A source of 26 documents."""
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return open_source(file)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_every_document_is_written_in_order_and_ends_with_eos(
    source: Source, tokenizer: Path, weird_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_BATCH", 3)  # several batches per part, the last one short
    prepared = prepare(source, tokenizer, weird_path, valid_every=10, documents_per_part=4)
    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    encoder.encode_special_tokens = True
    tokens = [[*encoder.encode(text, add_special_tokens=False).ids, 0] for text in TEXTS]
    assert all(document.count(0) == 1 for document in tokens)
    assert documents_in(weird_path / "valid_text_document") == [tokens[0], tokens[10], tokens[20]]
    held_in = [document for number, document in enumerate(tokens) if number % 10]
    assert documents_in(weird_path / "train_text_document") == held_in
    assert (prepared.splits["train"].documents, prepared.splits["train"].dtype) == (23, "uint16")
    assert len(list(weird_path.iterdir())) == 7, "two pairs with their facts and the record only"


def test_the_facts_of_each_pair_are_written_beside_it(
    source: Source, tokenizer: Path, tmp_path: Path
) -> None:
    prepared = prepare(source, tokenizer, tmp_path / "out")
    for split, held in prepared.splits.items():
        prefix = tmp_path / "out" / f"{split}_text_document"
        known = facts(prefix)
        assert known
        assert {**known, **asdict(held)} == known
        assert known["largest_id"] == max(map(max, documents_in(prefix)))
        assert (known["tokenizers"], known["vocabulary"]) == ([fingerprint(tokenizer)], vocabulary(tokenizer))
        assert known["sample"] == {"text": TEXTS[0], "ids": ids_of(tokenizer, TEXTS[0])}


def test_the_facts_are_removed_with_the_data_and_missing_facts_are_remade(
    source: Source, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(source, tokenizer, tmp_path / "out")
    prefix = tmp_path / "out" / "valid_text_document"
    facts_path(prefix).unlink()
    assert prepare(source, tokenizer, tmp_path / "out").made_now
    assert facts(prefix)
    assert f"{facts_path(prefix)}: not the facts of this pair" in capsys.readouterr().err
    prepare(source, tokenizer, tmp_path / "out", valid_every=0, overwrite=True)
    assert not facts_path(prefix).exists()


def test_the_data_has_the_token_that_the_tokenizer_puts_before_every_text(
    source: Source, tokenizer: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "with BOS"
    shutil.copytree(tokenizer, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    text, bos = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": EOS, "type_id": 0}}
    special = {EOS: {"id": EOS, "ids": [0], "tokens": [EOS]}}
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": [bos, text], "pair": [text, text], "special_tokens": special
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    prepare(source, folder, tmp_path / "out", valid_every=0)
    documents = documents_in(tmp_path / "out" / "train_text_document")
    assert documents[:25] == [[*ids_of(folder, text), 0] for text in TEXTS[:25]]
    assert {document[0] for document in documents} == {0}


def test_a_tokenizer_whose_class_gives_other_ids_than_its_file_writes_nothing(
    source: Source, tokenizer: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other class"
    shutil.copytree(tokenizer, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "LlamaTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="class and its file disagree"):
        prepare(source, folder, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").rglob("*") if file.is_file()] == ["request.json"]


def test_new_data_clears_the_indices_that_megatron_made_of_the_old(
    source: Source, tokenizer: Path, tmp_path: Path
) -> None:
    prefix = tmp_path / "out" / "train_text_document"
    kept = tmp_path / "out" / "other" / "cache" / "GPTDataset_indices" / "kept.npy"
    prepare(source, tokenizer, tmp_path / "out")
    assert documents_of_an_epoch(prefix) == set(range(25))
    assert list((prefix / "cache" / "GPTDataset_indices").glob("*.npy")), "Megatron writes its indices here"
    kept.parent.mkdir(parents=True)
    kept.touch()
    prepare(source, tokenizer, tmp_path / "out", overwrite=True, valid_every=2)
    assert not prefix.exists()
    assert kept.exists()
    assert documents_of_an_epoch(prefix) == set(range(13))


def documents_of_an_epoch(prefix: Path) -> set[int]:
    """Return the documents in Megatron's training set of this data; Megatron caches its indices."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split
    from megatron.core.tokenizers import MegatronTokenizer

    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=8,
        blend=([str(prefix)], None),
        split="1,0,0",
        tokenizer=MegatronTokenizer.from_pretrained(metadata_path={"library": "null-text"}, vocab_size=300),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )
    data = GPTDataset.build_low_level_dataset(str(prefix), config)
    indices = numpy.arange(len(data), dtype=numpy.int32)
    # 5 samples take a part of an epoch at most, so the name of the cache is the same for both sizes.
    return set(GPTDataset(data, str(prefix), indices, 5, Split.train, config).document_index.tolist())


def test_a_second_call_does_nothing(source: Source, tokenizer: Path, tmp_path: Path) -> None:
    first = prepare(source, tokenizer, tmp_path / "out")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    second = prepare(source, tokenizer, tmp_path / "out")
    assert (first.made_now, second.made_now) == (True, False)
    assert first.splits == second.splits
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}


def test_validation_text_can_be_switched_off(source: Source, tokenizer: Path, tmp_path: Path) -> None:
    prepared = prepare(source, tokenizer, tmp_path / "out", valid_every=0)
    assert list(prepared.splits) == ["train"]
    assert not indexed.idx_path(tmp_path / "out" / "valid_text_document").exists()


def test_damaged_output_is_remade(
    source: Source, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(source, tokenizer, tmp_path / "out")
    before = content(tmp_path / "out")
    file = tmp_path / "out" / "train_text_document.bin"
    file.write_bytes(file.read_bytes()[:-1])
    assert prepare(source, tokenizer, tmp_path / "out").made_now
    assert content(tmp_path / "out") == before
    assert "truncated" in capsys.readouterr().err


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_without_overwrite(
    source: Source, tokenizer: Path, tmp_path: Path, finished: bool
) -> None:
    output = tmp_path / "out"
    if finished:
        prepare(source, tokenizer, output)
    else:
        interrupt_after(source, 10, tokenizer, output)
    before = {file: file.stat().st_mtime_ns for file in output.rglob("*")}
    with pytest.raises(UserError, match=r"valid_every 50 \(now 5\).*--overwrite"):
        prepare(source, tokenizer, output, valid_every=5, documents_per_part=4 if not finished else 10_000)
    assert before == {file: file.stat().st_mtime_ns for file in output.rglob("*")}
    assert prepare(source, tokenizer, output, valid_every=5, overwrite=True).splits["valid"].documents == 6


def interrupt_after(source: Source, count: int, tokenizer: Path, output: Path) -> None:
    """Interrupt a preparation, in parts of 4 documents, at document number `count`."""

    class Interrupted(Source):
        def documents(self, on_skip: Callable[[Path], None]) -> Iterator[Document]:
            for number, document in enumerate(super().documents(on_skip)):
                if number == count:
                    raise KeyboardInterrupt
                yield document

    with pytest.raises(KeyboardInterrupt):
        prepare(Interrupted(source.name, source.root, source.files), tokenizer, output, documents_per_part=4)


def test_a_restart_reuses_complete_parts_and_remakes_damaged_ones(
    source: Source, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(source, tokenizer, tmp_path / "whole", documents_per_part=4)
    interrupt_after(source, 14, tokenizer, tmp_path / "out")
    parts = tmp_path / "out" / "text_document.parts"
    assert sorted(part.name for part in parts.iterdir()) == ["000000", "000001", "000002", "request.json"]
    assert not list((tmp_path / "out").glob("*.bin"))
    (parts / "000001" / "train_text_document.bin").write_bytes(b"lost in a power cut")
    (parts / "000003.tmp").mkdir()
    prepare(source, tokenizer, tmp_path / "out", documents_per_part=4)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert "reusing 2 part(s) of an earlier run" in capsys.readouterr().err


STUCK = """
import signal, sys
from tools.datasets import parts, preprocess
write = parts._builder
def builder(path, dtype):
    if path.parent.name == "000003.tmp":
        signal.pause()
    return write(path, dtype)
parts._builder = builder
sys.exit(preprocess.main())
"""
"""A preparation that stops at the beginning of its fourth part."""


def test_a_killed_run_continues_to_the_same_bytes(tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(
        "".join(json.dumps({"text": f"{number} naïve text\n" * 200}) + "\n" for number in range(600))
    )
    source, output = open_source(file), tmp_path / "out"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    (tmp_path / "stuck.py").write_text(STUCK)
    command = [sys.executable, str(tmp_path / "stuck.py"), "--documents-per-part", "30", "--threads", "1"]
    command += ["--source", str(file), "--tokenizer", str(tokenizer), "--output", str(output)]
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL) as process:
        while not (output / "text_document.parts" / "000003.tmp").exists():
            assert process.poll() is None
            time.sleep(0.01)
        with pytest.raises(UserError, match="another process"):
            prepare(source, tokenizer, output, documents_per_part=30)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not list(output.glob("*.bin")) + list(output.glob("*.idx")) + list(output.glob("*.json"))
    prepare(source, tokenizer, output, documents_per_part=30)
    prepare(source, tokenizer, tmp_path / "whole", documents_per_part=30)
    assert content(output) == content(tmp_path / "whole")


@pytest.mark.parametrize("renamed", [0, 1, 2, 3, 4, 5, 6])
def test_a_run_killed_between_two_renames_leaves_valid_files_and_can_be_continued(
    source: Source, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: int
) -> None:
    prepare(source, tokenizer, tmp_path / "whole")
    output, real = tmp_path / "out", os.replace
    count = 0

    def replace(temporary: Path, target: Path) -> None:
        nonlocal count
        if Path(target).parent == output:
            if count == renamed:
                raise KeyboardInterrupt
            count += 1
        real(temporary, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tokenizer, output)
    monkeypatch.undo()
    for idx in output.glob("*.idx"):
        assert indexed.problems(idx.with_suffix(""), thorough=True) == []
    prepare(source, tokenizer, output)
    assert content(output) == content(tmp_path / "whole")


def test_files_from_elsewhere_are_left_alone(source: Source, tokenizer: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "train_text_document.bin").write_bytes(b"precious")
    with pytest.raises(UserError, match="not made by this tool"):
        prepare(source, tokenizer, output)
    assert content(output) == {"train_text_document.bin": b"precious"}


def test_a_busy_folder_is_refused(source: Source, tokenizer: Path, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(UserError, match="another process is preparing data here"):
            prepare(source, tokenizer, tmp_path)
    finally:
        os.close(descriptor)


def test_a_source_that_changes_during_the_run_is_reported(
    source: Source, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["before", "after"])
    monkeypatch.setattr(Source, "fingerprint", lambda _: next(answers))
    with pytest.raises(UserError, match="changed while it was being read"):
        prepare(source, tokenizer, tmp_path / "out")


def test_a_source_that_failed_can_be_fixed_without_overwrite(tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "good"}\nbad\n')
    with pytest.raises(UserError, match=":2: not JSON"):
        prepare(open_source(file), tokenizer, tmp_path / "out")
    file.write_text('{"text": "good"}\n{"text": "fixed"}\n')
    assert prepare(open_source(file), tokenizer, tmp_path / "out").splits["train"].documents == 1


def test_mistakes_in_the_tokenizer_are_reported(source: Source, tokenizer: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file"):
        prepare(source, broken, tmp_path / "out")
    shutil.copytree(tokenizer, broken)
    (broken / "special_tokens_map.json").unlink()
    (broken / "tokenizer_config.json").write_text(
        '{"eos_token": {"__type": "AddedToken", "content": "</s>"}}'
    )
    with pytest.raises(UserError, match="eos_token '</s>' is not in its vocabulary"):
        prepare(source, broken, tmp_path / "out")
    (broken / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="eos_token is missing"):
        prepare(source, broken, tmp_path / "out")


def test_invalid_numbers_are_refused(source: Source, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--valid-every 1"):
        prepare(source, tokenizer, tmp_path / "out", valid_every=1)
    with pytest.raises(UserError, match="--documents-per-part 0"):
        prepare(source, tokenizer, tmp_path / "out", documents_per_part=0)


def test_a_single_document_cannot_be_split_into_train_and_valid(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one")
    with pytest.raises(UserError, match="--valid-every 0"):
        prepare(open_source(tmp_path / "one.txt"), tokenizer, tmp_path / "out")


def test_the_command_line_reports_a_mistake_in_one_line(
    tmp_path: Path, tool: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\nbad\n')
    done = tool("datasets/train_tokenizer.py", "--source", tmp_path / "bad.jsonl", "--output", tmp_path / "t")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'bad.jsonl'}:2: not JSON")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "t").exists()
