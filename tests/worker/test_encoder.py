"""Micro-batches: the ids of transformers' processors, answers alone in the loss, packing, and bad samples."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from energon_flagscale.cookers import cook
from energon_flagscale.encoder import Encoder, Sequences
from energon_flagscale.unusable import UnusableSample
from flagscale.errors import UserError
from flagscale.vision.tiling import Tiling, Vision
from flagscale.vision.tower import TOWERS
from flagscale_testing.pictures import write_tokenizer
from flagscale_testing.processors import image_processor
from flagscale_testing.processors import noise as picture

SIDE = 28
GRIDS = tuple((SIDE * rows, SIDE * columns) for rows in range(1, 4) for columns in range(1, 4))
SIGLIP, CLIP = (replace(TOWERS[name], side=SIDE) for name in ("siglip", "clip"))
ONEVISION, LLAVA = Vision(SIGLIP, Tiling(GRIDS)), Vision(CLIP)
SINGLE = Vision(SIGLIP, Tiling(GRIDS, tiles_several=False))
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
TRIMS = (
    """{{- bos_token -}}{% for m in messages %}{{ m.role + ': ' + m.content | trim + '\\n' }}{% endfor %}"""
)
PICTURE, FILM = {"type": "image"}, {"type": "video"}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizers")

    @cache
    def open_one(begins: bool = False) -> Any:
        return AutoTokenizer.from_pretrained(write_tokenizer(folder / str(begins), begins=begins))

    return open_one


def llama_tokenizer(folder: Path, *, legacy: bool) -> Any:
    """Return a tokenizer with Llama's ways: spaces are letters, a begin token, bytes for what is unknown.

    If `legacy`, a space is put before each piece of text between special tokens; else before the first.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    bytes_of = [f"<0x{number:02X}>" for number in range(256)]
    vocabulary = ["<unk>", "<s>", "</s>", *bytes_of, "▁", *LETTERS, "ca", "▁ca"]
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    merges = [("c", "a"), ("▁", "ca")]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<s>", "</s>", "<image>", "<video>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def sample(messages: list[Any], pictures: Any = (), videos: Any = (), key: str = "one") -> dict[str, Any]:
    """Return a crude sample as Energon reads it from a shard."""
    files = {f"image{number}.png": png(image) for number, image in enumerate(pictures)}
    for number, frames in enumerate(videos):
        files |= {f"video{number}.{place:03d}.png": png(frame) for place, frame in enumerate(frames)}
    turns = [
        {"role": ("user", "assistant")[number % 2], "content": content}
        for number, content in enumerate(messages)
    ]
    crude = {"__key__": key, "__restore_key__": (), "__subflavors__": {}, "__sources__": ()}
    return {**crude, "json": {"messages": turns}, **files}


def words(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def encoded(encoder: Encoder, crude: dict[str, Any]) -> Any:
    return encoder.postencode_sample(encoder.preencode_sample(cook(crude)))


def one(encoder: Encoder, *crude: dict[str, Any]) -> dict[str, Any]:
    return encoder.batch([encoded(encoder, single) for single in crude])


def auto_processor(encoder: Encoder, tokenizer: Any, vision: Vision, folder: Path) -> Any:
    """Return the processor of a folder as a converted model has it."""
    from transformers import AutoProcessor
    from transformers.models.llava.processing_llava import LlavaProcessor
    from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
    from transformers.models.llava_onevision.video_processing_llava_onevision import (
        LlavaOnevisionVideoProcessor,
    )

    square, text = {"height": SIDE, "width": SIDE}, encoder.template.text
    if vision.tiling:
        LlavaOnevisionProcessor(
            image_processor(vision),
            tokenizer,
            LlavaOnevisionVideoProcessor(size=square),
            num_image_tokens=vision.tower.features,
            vision_feature_select_strategy="full",
            chat_template=text,
        ).save_pretrained(folder)
    else:
        LlavaProcessor(
            image_processor(vision),
            tokenizer,
            patch_size=vision.tower.patch_size,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=text,
        ).save_pretrained(folder)
    return AutoProcessor.from_pretrained(folder)


CASES: dict[str, tuple[list[Any], Any, Any]] = {
    "text": (["What?", "That.", "Sure?", "Yes, 42."], (), ()),
    "one": ([[PICTURE, words("What is this?")], "a é cat"], [picture(40, 60)], ()),
    "wide": ([[PICTURE, words("What?")], "a"], [picture(20, 190)], ()),
    "one row": ([[PICTURE, words("What?")], "a"], [picture(2, 90)], ()),
    "shrunk": ([[words("Now "), PICTURE, words("?")], "b"], [picture(170, 160)], ()),
    "second turn": (["Hi", "Hello", [PICTURE, words("And?")], "c"], [picture(33, 77)], ()),
}
MORE: dict[str, tuple[list[Any], Any, Any]] = {
    "several": (
        [[PICTURE, PICTURE, words("Which?")], "a", [words("or "), PICTURE], "b"],
        [picture(40, 60), picture(61, 33), picture(28, 28)],
        (),
    ),
    "video": ([[FILM, words("What moves?")], "it"], (), [[picture(30, 40)] * 3]),
    "both": ([[FILM, PICTURE, words("Same?")], "no"], [picture(9, 99)], [[picture(30, 40)] * 5]),
}


@pytest.mark.parametrize("template", ["chatml", "vicuna", "trims"])
@pytest.mark.parametrize("vision", [ONEVISION, LLAVA, SINGLE], ids=["onevision", "llava", "single"])
def test_ids_and_pixels_equal_those_of_transformers(
    tokenizers: Any, tmp_path: Path, vision: Vision, template: str
) -> None:
    tokenizer = tokenizers(template == "trims")
    named = template
    if template == "trims":
        (tmp_path / "own.jinja").write_text(TRIMS)
        named = str(tmp_path / "own.jinja")
    encoder = Encoder(tokenizer, vision, Sequences(2048), named)
    processor = auto_processor(encoder, tokenizer, vision, tmp_path)
    compare(encoder, processor, tokenizer)


@pytest.mark.parametrize("legacy", [True, False])
def test_ids_equal_those_of_transformers_for_llama(tmp_path: Path, legacy: bool) -> None:
    tokenizer = llama_tokenizer(tmp_path / "tokenizer", legacy=legacy)
    encoder = Encoder(tokenizer, LLAVA, Sequences(2048), "vicuna")
    compare(encoder, auto_processor(encoder, tokenizer, LLAVA, tmp_path), tokenizer)
    batch = one(encoder, sample([[PICTURE, words("What?")], "a é cat", "R", "yes"], [picture(40, 60)]))
    trained = batch["loss_mask"][0].bool()
    assert tokenizer.decode(batch["labels"][0][trained]) == " a é cat</s> yes</s>"
    assert batch["tokens"][0, :2].tolist() != [1, 1]


TURNS = """{% for m in messages %}
{{- '[U]' + m.content + '[/U]' if m.role == 'user' else ' ' + m.content + '</s>' }}{% endfor %}"""
"""As Llama 2's and Mistral's, without a prompt for an answer, which begins with a space."""
SPACE = """{% for m in messages %}{{ ('Q: ' if m.role == 'user' else 'A: ') + m.content + '</s>' }}
{%- endfor %}{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"""
"""With a prompt that ends with a space."""


@pytest.mark.parametrize("template", [TURNS, SPACE])
def test_first_word_of_an_answer_is_learnt(tmp_path: Path, template: str) -> None:
    """A tokenizer that joins it with the space before must not hide it from the loss."""
    tokenizer = llama_tokenizer(tmp_path, legacy=True)
    (tmp_path / "own.jinja").write_text(template)
    encoder = Encoder(tokenizer, LLAVA, Sequences(256), str(tmp_path / "own.jinja"))
    batch = one(encoder, sample(["Q", "ca", "R", "ca"]))
    learnt = batch["labels"][0][batch["loss_mask"][0].bool()]
    assert tokenizer.convert_ids_to_tokens(learnt) == ["▁ca", "</s>"] * 2


def compare(encoder: Encoder, processor: Any, tokenizer: Any) -> None:
    """Compare the tokens and sizes of every case with those of a processor."""
    vision = encoder.vision
    cases = CASES if vision is LLAVA else {**CASES, **MORE}
    for name, (messages, pictures, videos) in cases.items():
        crude = sample(messages, pictures, videos)
        batch = one(encoder, crude)
        settings: dict[str, Any] = {}
        if pictures:
            settings["images"] = [pictures] if vision is SINGLE else [*pictures]
        if videos:
            settings["videos"] = [np.stack([np.asarray(frame) for frame in frames]) for frames in videos]
        text = processor.apply_chat_template(crude["json"]["messages"], tokenize=False)
        begins = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        theirs = processor(
            text=[text], return_tensors="pt", text_kwargs={"add_special_tokens": not begins}, **settings
        )
        assert batch["tokens"].tolist() == theirs["input_ids"].tolist(), name
        tiles = [item.tiles for item in batch["media"].items if item.kind == "image"]
        if pictures and vision.tiling:
            sizes = [(item.height, item.width) for item in batch["media"].items if item.kind == "image"]
            assert [tuple(size) for size in theirs["image_sizes"].tolist()] == sizes
            real = [(values.abs().amax((1, 2, 3)) > 0).sum() for values in theirs["pixel_values"]]
            assert sum(tiles) == sum(real)


@pytest.mark.parametrize("template", ["chatml", "vicuna"])
def test_answers_alone_are_in_the_loss(tokenizers: Any, template: str) -> None:
    tokenizer = tokenizers()
    encoder = Encoder(tokenizer, ONEVISION, Sequences(2048, multiple=8), template)
    long = sample([[PICTURE, words("What?")], "a cat", "Sure?", "yes"], [picture(40, 60)])
    batch = one(encoder, long, sample(["Q", "é"], key="two"))
    assert batch["keys"] == ["one", "two"]
    assert {batch[name].shape for name in ("tokens", "labels", "loss_mask", "position_ids")} == {
        batch["tokens"].shape
    }
    assert batch["tokens"].shape[1] % 8 == 0
    start = " " if template == "vicuna" else ""
    ends = tokenizer.eos_token
    for row, answers in enumerate([f"{start}a cat{ends}{start}yes{ends}", f"{start}é{ends}"]):
        trained = batch["loss_mask"][row].bool()
        assert tokenizer.decode(batch["labels"][row][trained]) == answers
        # The label of a token is the one after it.
        assert torch.equal(batch["labels"][row, :-1][trained[:-1]], batch["tokens"][row, 1:][trained[:-1]])
    assert batch["position_ids"].tolist() == [[*range(batch["tokens"].shape[1])]] * 2
    assert "starts" not in batch


def test_pictures_in_answers_are_not_learnt(tokenizers: Any) -> None:
    answer = {"role": "assistant", "content": [words("so: "), PICTURE, words("see?")]}
    cooked = cook(sample([[PICTURE], "a"], [picture(9, 9)]))
    cooked.messages = [{"role": "user", "content": "Q"}, answer]
    encoder = Encoder(tokenizers(), ONEVISION, Sequences(256))
    batch = encoder.batch([encoder.postencode_sample(encoder.preencode_sample(cooked))])
    learnt = batch["labels"][0][batch["loss_mask"][0].bool()]
    assert tokenizers().decode(learnt) == "so: see?<|im_end|>"


def test_lengths_are_those_of_the_longest_sample_or_fixed(tokenizers: Any) -> None:
    crude = sample(["Q", "a"])
    plain = one(Encoder(tokenizers(), ONEVISION, Sequences(256)), crude)["tokens"]
    for sequences, length in (
        (Sequences(256, 16), -(-plain.shape[1] // 16) * 16),
        (Sequences(256, 1, True), 256),
    ):
        batch = one(Encoder(tokenizers(), ONEVISION, sequences), crude)
        assert batch["tokens"].shape == (1, length)
        assert torch.equal(batch["tokens"][:, : plain.shape[1]], plain)
        assert batch["tokens"][0, plain.shape[1] :].unique().tolist() == [tokenizers().pad_token_id]
        assert batch["loss_mask"][0, plain.shape[1] - 1 :].sum() == 0


def test_text_alone_has_no_tiles(tokenizers: Any) -> None:
    media = one(Encoder(tokenizers(), ONEVISION, Sequences(256)), sample(["Q", "a"]))["media"]
    assert media.items == ()
    assert media.tiles.shape == (0, 3, SIDE, SIDE)
    assert media.tiles.dtype == torch.uint8


def test_packed_samples_are_documents_of_their_own(tokenizers: Any) -> None:
    tokenizer = tokenizers()
    crude = [
        sample(
            [[PICTURE, words(f"Number {number}?")], "x" * (number + 1)],
            [picture(30 + number, 40)],
            key=str(number),
        )
        for number in range(6)
    ]
    encoder = Encoder(tokenizer, ONEVISION, Sequences(256, 4), packs=True)
    packs = encoder.select_samples_to_pack([encoder.preencode_sample(cook(single)) for single in crude])
    batch = encoder.batch(
        [
            encoder.pack_selected_samples([encoder.postencode_sample(single) for single in pack])
            for pack in packs
        ]
    )
    alone = {
        key: one(Encoder(tokenizer, ONEVISION, Sequences(256)), single)
        for key, single in zip("012345", crude, strict=True)
    }
    assert batch["tokens"].shape == (len(packs), 256)
    assert sorted(batch["keys"]) == [*"012345"]
    keys, items, tiles = iter(batch["keys"]), [], []
    for row, pack in enumerate(packs):
        place = 0
        for key in (next(keys) for _ in pack):
            single = alone[key]
            length = single["tokens"].shape[1]
            part = slice(place, place + length)
            assert torch.equal(batch["tokens"][row, part], single["tokens"][0])
            assert torch.equal(batch["loss_mask"][row, part], single["loss_mask"][0])
            trained = single["loss_mask"][0].bool()
            assert torch.equal(batch["labels"][row, part][trained], single["labels"][0][trained])
            assert batch["position_ids"][row, part].tolist() == [*range(length)]
            assert batch["starts"][row, part].unique().tolist() == [place]
            items += single["media"].items
            tiles.append(single["media"].tiles)
            place += length
        assert batch["starts"][row, place:].unique().tolist() == [place][: 256 - place]
        assert batch["loss_mask"][row, place:].sum() == 0
    assert batch["media"].items == tuple(items)
    assert torch.equal(batch["media"].tiles, torch.cat(tiles))


def test_a_pack_of_which_nothing_could_be_decoded_is_skipped(tokenizers: Any) -> None:
    from megatron.energon import SkipSample

    with pytest.raises(SkipSample):
        Encoder(tokenizers(), ONEVISION, Sequences(128), packs=True).pack_selected_samples([])


CUT = png(picture(90, 90))[:2000]


@pytest.mark.parametrize(
    ("crude", "message"),
    [
        (
            sample(["Q", "a" * 300]),
            r"it has \d+ tokens, 0 of them for 0 pictures and videos: more than `seq_length: 256`",
        ),
        (sample([[PICTURE], "a"], [picture(170, 160)]), None),
        (sample(["Q"]), "the last message is not an answer"),
        (sample(["Q <image> there", "a"]), r"0 image\(s\), but 1 placeholder\(s\) <image>"),
        (sample([[words("Q <image>")], "a"]), "the text of a part spells <image>"),
        (sample([[PICTURE], "a"]), r"0 image\(s\), but 1 placeholder\(s\) <image>"),
        (sample(["Q", "a"], [picture(9, 9)]), r"1 image\(s\), but 0 placeholder\(s\) <image>"),
        (sample([[PICTURE], "a"], []) | {"image0.png": CUT}, "image0.png cannot be decoded: .*truncated"),
        (sample([[PICTURE], "a"], []) | {"image0.png": b"<html>"}, "image0.png is not a picture"),
        (
            sample([[FILM], "a"], (), [[picture(9, 9)]]) | {"video0.001.png": CUT},
            "video0.001.png cannot be decoded",
        ),
    ],
)
@pytest.mark.parametrize("makes_tiles", [True, False])
def test_samples_that_cannot_be_used_are_errors_in_words(
    tokenizers: Any, crude: Any, message: str | None, makes_tiles: bool
) -> None:
    encoder = Encoder(tokenizers(), ONEVISION, Sequences(256), makes_tiles=makes_tiles)
    if message is None:
        media = encoder.batch([encoded(encoder, crude)])["media"]
        assert (len(media.items), len(media.tiles)) == ((1, 10) if makes_tiles else (0, 0))
        return
    with pytest.raises(UnusableSample, match=message):
        encoded(encoder, crude)


def test_videos_need_tiles(tokenizers: Any) -> None:
    encoder = Encoder(tokenizers(), LLAVA, Sequences(256))
    with pytest.raises(UnusableSample, match="a model without tiles knows only pictures"):
        encoded(encoder, sample([[FILM], "a"], (), [[picture(9, 9)]]))


def test_videos_have_the_most_frames_that_the_model_takes(tokenizers: Any) -> None:
    encoder = Encoder(tokenizers(), replace(ONEVISION, video_frames=4), Sequences(256))
    media = one(encoder, sample([[FILM], "a"], (), [[picture(9, 9)] * 7]))["media"]
    assert [item.tiles for item in media.items] == [4]


def test_placeholders_must_be_tokens(tokenizers: Any) -> None:
    with pytest.raises(UserError, match="the tokenizer has no special token '<picture>', which stands for"):
        Encoder(tokenizers(), replace(ONEVISION, image_token="<picture>"), Sequences(256))


def test_encoder_survives_the_way_to_a_reader(tokenizers: Any) -> None:
    import pickle

    crude = sample([[PICTURE, words("What?")], "a cat"], [picture(40, 60)])
    encoder = Encoder(tokenizers(), ONEVISION, Sequences(256))
    copy = pickle.loads(pickle.dumps(encoder))
    assert torch.equal(one(copy, crude)["tokens"], one(encoder, crude)["tokens"])
