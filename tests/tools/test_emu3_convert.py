"""BAAI's folders of Emu3 become one that transformers opens: the same weights, ids, pixels, and questions."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from flagscale.errors import UserError
from flagscale_testing.original_emu3 import CODES, Original, make_original, write_json
from tests.e2e.test_serve import has_vllm
from tools.command import run
from tools.emu3 import original_weights
from tools.emu3.convert import convert, main


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return make_original(tmp_path_factory.mktemp("baai"))


@pytest.fixture(scope="module")
def folder(original: Original, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("converted") / "Emu3-Gen-hf"
    convert(original.load, original.tower, made, shard_bytes=300_000)
    return made


def test_every_weight_is_the_same_and_none_is_missing(original: Original, folder: Path) -> None:
    from transformers import Emu3ForConditionalGeneration

    opened, report = Emu3ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    state = opened.state_dict()
    assert state.keys() == original.model.state_dict().keys()
    for name, tensor in original.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
        assert tensor.dtype == state[name].dtype, name
    assert len([*folder.glob("*.safetensors")]) > 3


def test_logits_and_pixels_are_the_same(original: Original, folder: Path) -> None:
    from transformers import Emu3ForConditionalGeneration

    opened = Emu3ForConditionalGeneration.from_pretrained(folder).eval()
    ids = torch.arange(2, 60)[None]
    codes = torch.randint(0, CODES, (1, 4, 6), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(opened(input_ids=ids).logits, original.model(input_ids=ids).logits)
        pixels = opened.model.vqmodel.decode(codes)
        assert torch.equal(pixels, original.model.model.vqmodel.decode(codes))
        sizes = torch.tensor([[32, 48]])
        seen = [one.model.get_image_tokens(pixels, sizes) for one in (opened, original.model)]
    assert torch.equal(*seen)


HARD = (
    "", " ", "\n", "  \n \n\n  the end", "In 2023, 12345 + 67 = 12412.", "it's IT'S we'll WE'LL tzx",
    "naïve née re\u0301sume\u0301 \u212b \u1e9b\u0323", "数据 数，据。", "a\u200db\u00a0c\u2003d\u3000e",
    "👩‍👩‍👧 🇫🇷 ✈️", "<|extra_203|>the<|image start|>90*90<|image token|>", "<|extra_5|><|nothing|>", "١٢٣ ½ Ⅷ",
    "\u0130\u017f 'ſ 'S", "a\u0085b\u2028c\u2029d", "\x1c\x1d\x1e\x1f x", "word\u0301\u0302 \u0345 ᾳ",
    "\u180e\ufeff a", "tzx tzxa", "\t\r\n x\r\n",
)  # fmt: skip


def expected_ids(original: Original, text: str) -> list[int]:
    import unicodedata

    return original.encoding.encode(unicodedata.normalize("NFC", text), allowed_special="all")


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_hard_text_becomes_the_same_ids_as_with_tiktoken(
    original: Original, tokenizer: Any, text: str
) -> None:
    assert tokenizer(text).input_ids == expected_ids(original, text)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text("th e'singa123\n\r\té.A"))
def test_any_text_becomes_the_same_ids_as_with_tiktoken(
    original: Original, tokenizer: Any, text: str
) -> None:
    assert tokenizer(text).input_ids == expected_ids(original, text)


def test_a_prompt_for_a_picture_is_that_of_baai(original: Original, folder: Path) -> None:
    from transformers import Emu3Processor

    processor = Emu3Processor.from_pretrained(folder)
    made = processor(text=["a cat"], return_for_image_generation=True, ratio="4:3", image_area=4096)
    expected = "<|extra_203|>a cat<|image start|>7*9<|image token|>"
    assert made.input_ids == [expected_ids(original, expected)]
    assert processor.image_processor.image_area == 4096


def test_a_question_is_that_of_baai(original: Original, folder: Path) -> None:
    from PIL import Image
    from transformers import Emu3Processor

    processor = Emu3Processor.from_pretrained(folder)
    content = [
        {"type": "text", "text": "What is it?"},
        {"type": "image", "image": Image.new("RGB", (40, 48))},
    ]
    asked = [{"role": "user", "content": content}]
    made = processor.apply_chat_template(
        asked, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    picture = "<|image start|>6*5<|image token|>" + "<|extra_0|>" * 36 + "<|extra_201|><|image end|>"
    text = f"<|extra_203|>You are a helpful assistant. USER: {picture}What is it?. ASSISTANT:"
    assert made["input_ids"][0].tolist() == expected_ids(original, text)
    assert made["pixel_values"].min() == -1  # black, by BAAI's mean and deviation


def test_generation_settings_are_kept(original: Original, folder: Path) -> None:
    generation = json.loads((folder / "generation_config.json").read_text())
    ids = {"bos": "<|extra_203|>", "eos": "<|extra_204|>", "pad": "<|endoftext|>"}
    assert generation == {"top_k": 2048, **{f"{name}_token_id": original.special[ids[name]] for name in ids}}


def changed(path: Path, **keys: object) -> None:
    write_json(path, {**json.loads(path.read_text()), **keys})


def without_shard(load: Path, tower: Path) -> None:
    (load / "model-00002-of-00003.safetensors").unlink()


def without_tensor(load: Path, tower: Path) -> None:
    kept = load_file(tower / "model.safetensors")
    del kept["quantize.embedding.weight"]
    save_file({**kept, "more": torch.zeros(1)}, tower / "model.safetensors")


def shorter_tokens(load: Path, tower: Path) -> None:
    text = (load / "emu3_vision_tokens.txt").read_text()
    (load / "emu3_vision_tokens.txt").write_text(text.replace("<|visual token 000015|>\n", ""))


def damaged_ranks(load: Path, tower: Path) -> None:
    lines = (load / "emu3.tiktoken").read_bytes().splitlines(keepends=True)
    (load / "emu3.tiktoken").write_bytes(b"".join(lines[:260] + lines[261:]))


MISTAKES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a missing shard": (without_shard, r"Emu3-Gen: missing shard model-00002-of-00003.safetensors"),
    "missing and foreign tensors": (
        without_tensor,
        r"1 of \d+ tensors are missing: vqmodel.quantize.embedding.weight(.|\n)*1 tensors do not belong",
    ),
    "another vocabulary": (
        shorter_tokens,
        r"the tokenizer has \d+ tokens, but `vocab_size` of the model is(.|\n)*tokens for 15 codes",
    ),
    "a damaged tokenizer": (damaged_ranks, r"emu3.tiktoken:261: .* is not a token in base 64"),
    "no tokenizer": (lambda load, _: (load / "emu3.tiktoken").unlink(), "emu3.tiktoken: No such file"),
    "another codebook": (
        lambda _, tower: changed(tower / "config.json", codebook_size=32),
        "tokens for 16 codes, but the vision tokenizer has 32",
    ),
    "other ids": (
        lambda load, _: changed(load / "config.json", eol_token_id=3),
        r"<\|extra_200\|> is \d+ in the tokenizer, but 3 for the model",
    ),
    "other sizes": (
        lambda load, _: changed(load / "config.json", intermediate_size=128),
        r"mlp.up_proj.weight has shape \[96, 64\], but config.json gives \[128, 64\]",
    ),
    "several at once": (
        lambda load, tower: (
            changed(load / "config.json", rope_scaling={"type": "dynamic", "factor": 2.0}, hidden_size="64"),
            changed(tower / "config.json", double_z=True, attn_resolutions=[0], embed_dim=0),
        ),
        r"hidden_size(.|\n)*rope_scaling(.|\n)*`embed_dim`(.|\n)*attn_resolutions(.|\n)*double_z",
    ),
    "a tower that cannot be computed": (
        lambda _, tower: changed(tower / "config.json", embed_dim=4),
        "`z_channels` is 3 and `embed_dim` 4; only equal ones",
    ),
    "another activation": (
        lambda load, _: changed(load / "config.json", hidden_act=3),
        "Emu3-Gen/config.json: transformers refuses its values: .*hidden_act",
    ),
    "a grid of other pixels": (
        lambda _, tower: changed(tower / "preprocessor_config.json", spatial_factor=16, do_resize=1),
        r"do_resize(.|\n)*8 pixels per code",
    ),
    "swapped folders": (
        lambda load, tower: (load.rename("x"), tower.rename(load), Path("x").rename(tower)),
        r"--load .*`model_type` is 'Emu3VisionVQ'(.|\n)*--tower .*`model_type` is 'Emu3'",
    ),
    "a converted folder": (
        lambda load, _: changed(load / "config.json", model_type="emu3"),
        "already in the form of transformers(.|\n)*use that folder as it is",
    ),
    "no folder": (lambda _, tower: shutil.rmtree(tower), "--tower .*: no such folder"),
    "a folder in the place of a file": (
        lambda load, tower: (
            (load / "config.json").unlink(),
            (load / "config.json").mkdir(),
            shutil.rmtree(tower),
        ),
        "config.json: not a file(.|\n)*--tower .*: no such folder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_reported_in_words_and_nothing_is_written(
    original: Original, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    load, tower = tmp_path / "Emu3-Gen", tmp_path / "Tower"
    shutil.copytree(original.load, load)
    shutil.copytree(original.tower, tower)
    change, message = MISTAKES[case]
    change(load, tower)
    with pytest.raises(UserError, match=message):
        convert(load, tower, tmp_path / "made")
    assert {path.name for path in tmp_path.iterdir()} <= {"Emu3-Gen", "Tower"}


def test_a_failure_leaves_nothing_and_a_folder_that_exists_is_kept(
    original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(UserError, match="already exists; use --overwrite"):
        convert(original.load, original.tower, tmp_path / "made")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tools.emu3.convert.original_processor.converted", full)
    with pytest.raises(OSError, match="No space left"):
        convert(original.load, original.tower, tmp_path / "made", overwrite=True)
    assert [*tmp_path.rglob("*")] == [tmp_path / "made"]


def test_at_most_a_piece_of_a_tensor_is_in_memory(
    original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    monkeypatch.setattr(original_weights, "_PIECE", 1000)

    class Counts:
        def __init__(self, total: int) -> None:
            self.total = total

        def __enter__(self) -> Counts:
            return self

        def __exit__(self, *_: object) -> None:
            assert sum(counted) == self.total

        def advance(self, size: int, **_: float) -> None:
            counted.append(size)

    made = convert(original.load, original.tower, tmp_path / "made", progress=Counts)
    assert (max(counted), sum(counted)) == (1000, made.bytes)


@pytest.mark.slow
def test_the_command_says_what_it_wrote_and_what_it_did_not_read(
    original: Original, tmp_path: Path, tool: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    load = tmp_path / "load"
    shutil.copytree(original.load, load)
    changed(load / "config.json", sliding_window=128)
    done = tool("emu3/convert.py", "--load", load, "--tower", original.tower, "--save", tmp_path / "made")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r".*/made: \d+ tensors, \d\.\d MB\n", done.stdout)
    assert "config.json: not read: sliding_window" in done.stderr


def test_a_mistake_ends_the_command_with_code_2(
    original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--load", original.load, "--tower", original.tower, "--save", tmp_path)
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, words)])
    assert run(main) == 2
    assert "already exists; use --overwrite" in capsys.readouterr().err


PROGRAM = """
import json, sys
from vllm import LLM, SamplingParams
engine = LLM(model=sys.argv[1], dtype="float32", max_model_len=256, enforce_eager=True, max_num_seqs=2)
asked = [{"prompt_token_ids": json.loads(sys.argv[2])}, sys.argv[3]]
made = engine.generate(asked, SamplingParams(temperature=0, max_tokens=24, ignore_eos=True), use_tqdm=False)
print(json.dumps([list(one.outputs[0].token_ids) for one in made]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)")
@pytest.mark.timeout(900)
def test_vllm_opens_the_folder_and_answers_like_transformers(original: Original, folder: Path) -> None:
    text = "<|extra_203|>the thing<|image start|>7*9<|image token|>"
    ids = expected_ids(original, text)
    with torch.no_grad():
        made = original.model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=24, min_new_tokens=24, eos_token_id=None
        )
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), json.dumps(ids), text],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [made[0, len(ids) :].tolist()] * 2
