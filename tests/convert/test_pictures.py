"""Models with pictures: round trips, names, files beside the weights, towers in folders of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from flagscale.errors import UserError
from flagscale_testing.conversion import same, tensors_of
from flagscale_testing.llava_folders import MODELS, run_chain, same_model, write_folder
from megatron.flagscale.convert.convert import convert
from megatron.flagscale.convert.tower_folder import Wanted

LLAVA, ONEVISION = "LLaVA: CLIP, Llama", "OneVision: SigLIP, Qwen2, tied"
Folders = Callable[[str], Path]

PUBLISHED: dict[str, dict[str, Any]] = {
    "llava-1.5-7b": {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 32000,
        "model_type": "llava",
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": 32064,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vision_config": {
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": 32064,
    },
    "onevision-0.5b, grids": {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": [[384 * row, 384 * column] for row in range(1, 7) for column in range(1, 7)],
        "image_token_index": 151646,
        "model_type": "llava_onevision",
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "Qwen/Qwen2-0.5B-Instruct",
            "architectures": ["Qwen2ForCausalLM"],
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_window_layers": 24,
            "model_type": "qwen2",
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "vocab_size": 152000,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_image_newline_parameter": True,
        "video_token_index": 151647,
        "vision_aspect_ratio": "anyres_max_9",
        "vision_config": {
            "hidden_size": 1152,
            "image_size": 384,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 26,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
}
"""The keys of well-known folders, from what is publicly known about them."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Return the folder of a model, with `hf`, `megatron` and `back` in it; do not change it."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("model")
            write_folder(name, made[name] / "hf")
            convert(made[name] / "hf", made[name] / "megatron")
            convert(made[name] / "megatron", made[name] / "back")
        return made[name]

    return folder


@pytest.fixture
def copy(folders: Folders, tmp_path: Path) -> Folders:
    """Return a copy of a model's Hugging Face folder, which a test may damage."""
    return lambda name: Path(shutil.copytree(folders(name) / "hf", tmp_path / "copy"))


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def change(folder: Path, **keys: Any) -> Path:
    """Replace keys of a folder's `config.json`; those of a nested one are given as a dict."""
    config = config_of(folder)
    for key, value in keys.items():
        config[key] = {**config[key], **value} if key.endswith("_config") and value else value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        convert(folder, folder.parent / "target", **options)
    assert not (folder.parent / "target").exists()
    return str(caught.value)


@pytest.mark.parametrize("name", MODELS)
def test_a_round_trip_is_bitwise_equal(name: str, folders: Folders) -> None:
    assert same_model(folders(name) / "hf", folders(name) / "back")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_megatron_computes_trains_and_saves_what_was_converted(tmp_path: Path) -> None:
    for name, found in run_chain((LLAVA, "OneVision: SigLIP, Qwen3"), tmp_path).items():
        assert not found.error, name
        assert found.logits < 1e-5, name
        assert (found.round_trip, found.trained, found.torch) == (True, True, True), name


@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_same_from_what_was_exported(name: str, folders: Folders) -> None:
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    picture = Image.effect_noise((70, 31), 90).convert("RGB")
    given = AutoProcessor.from_pretrained(folders(name) / "back")(
        text=["a <image> b"], images=[picture], return_tensors="pt"
    )
    logits = []
    for folder in ("hf", "back"):
        opened, report = AutoModelForImageTextToText.from_pretrained(
            folders(name) / folder, output_loading_info=True
        )
        assert not any(report.values()), report
        with torch.no_grad():
            logits.append(opened(**given).logits)
    assert torch.equal(*logits)


def test_the_configuration_is_that_of_the_source(folders: Folders) -> None:
    for name in MODELS:
        source, exported = (config_of(folders(name) / one) for one in ("hf", "back"))
        for part in (None, "text_config", "vision_config"):
            one, other = (whole[part] if part else whole for whole in (source, exported))
            computed = {"sliding_window", "max_window_layers", "head_dim", "initializer_factor"}
            # A missing id is that of the tokenizer.
            ids = {"bos_token_id", "eos_token_id", "pad_token_id"}
            skipped = {"transformers_version", "initializer_range", "layer_types", *ids, *computed}
            differences = {key for key in one.keys() - skipped if other.get(key, one[key]) != one[key]}
            assert differences <= {"text_config", "vision_config", "image_seq_length", "architectures"}, name
        assert exported["image_token_index"] == source["image_token_index"]
    assert config_of(folders(LLAVA) / "back")["image_seq_length"] == 4


def test_the_names_are_those_that_vllm_reads_too(folders: Folders) -> None:
    names = tensors_of(folders(ONEVISION) / "back").keys()
    beginnings = ("language_model.model.", "vision_tower.vision_model.", "multi_modal_projector.")
    assert {name for name in names if not name.startswith(beginnings)} == {"image_newline"}


@pytest.mark.parametrize("name", [LLAVA, "OneVision: SigLIP, Qwen3"])
def test_the_names_within_transformers_are_read(
    name: str, copy: Folders, folders: Folders, tmp_path: Path
) -> None:
    folder = copy(name)
    changed = {}
    for one, tensor in load_file(folder / "model.safetensors").items():
        inner = one.replace("language_model.model.", "language_model.")
        changed["lm_head.weight" if one.endswith("lm_head.weight") else f"model.{inner}"] = tensor
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    convert(folder, tmp_path / "back", to="huggingface")
    assert same(tmp_path / "back", folders(name) / "back")


def test_the_same_tensor_by_two_names_is_refused(copy: Folders) -> None:
    folder = copy(LLAVA)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["language_model.lm_head.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "lm_head.weight are the same tensor; remove one of them" in refusal(folder)


def test_layers_of_the_tower_that_are_not_read_are_left_out(tmp_path: Path, folders: Folders) -> None:
    whole = write_folder(LLAVA, tmp_path / "hf", vision_feature_layer=-2)
    made = convert(tmp_path / "hf", tmp_path / "megatron")
    assert made.model.vision
    assert made.model.vision.tower.layers == 2
    assert made.notices == (
        "the tower is converted without its last layer, which the model does not read "
        "(`vision_feature_layer` in config.json)",
    )
    convert(tmp_path / "megatron", tmp_path / "back")
    config = config_of(tmp_path / "back")
    assert (config["vision_config"]["num_hidden_layers"], config["vision_feature_layer"]) == (2, -1)
    opened = type(whole).from_pretrained(tmp_path / "back")
    ids = torch.tensor([[1, *[whole.config.image_token_index] * 4, 2]])
    with torch.no_grad():
        one, other = (each(ids, pixel_values=torch.ones(1, 3, 30, 30)).logits for each in (whole, opened))
    assert torch.equal(one, other)


def test_the_arguments_of_a_training_are_written(folders: Folders) -> None:
    task = yaml.safe_load((folders(ONEVISION) / "megatron" / "model.yaml").read_text())
    assert task["vision_model_type"] == "siglip"
    assert (task["vision_image_size"], task["vision_num_layers"]) == (30, 2)
    assert task["image_aspect_ratio"] == "anyres_max_9"
    assert "image_grid_pinpoints" not in task
    assert (task["image_token"], task["video_token"]) == ("<image>", "<video>")


def test_conversations_are_written_as_in_the_training(folders: Folders, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    parts = [{"type": "image"}, {"type": "text", "text": "how many?"}]
    asked = [{"role": "user", "content": parts}]
    text = AutoProcessor.from_pretrained(folders(LLAVA) / "back").apply_chat_template(asked)
    assert text == "<|im_start|>user\n<image>\nhow many?<|im_end|>\n"


def test_answers_end_where_they_ended_in_the_training(folders: Folders, tmp_path: Path) -> None:
    shutil.copytree(folders(LLAVA) / "megatron", source := tmp_path / "megatron")
    settings = source / "tokenizer" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token": "<|endoftext|>"}))
    stored = source / "tokenizer" / "generation_config.json"
    stored.write_text(json.dumps({**json.loads(stored.read_text()), "eos_token_id": 256}))
    for template, ends in (("chatml", [256, 258]), ("vicuna", 256)):
        convert(source, tmp_path / template, chat_template=template)
        for name in ("generation_config.json", "config.json"):
            assert json.loads((tmp_path / template / name).read_text())["eos_token_id"] == ends


def test_the_template_of_conversations_can_be_chosen(folders: Folders, tmp_path: Path) -> None:
    convert(folders(LLAVA) / "megatron", tmp_path / "back", chat_template="vicuna")
    text = (tmp_path / "back" / "chat_template.jinja").read_text()
    assert "ASSISTANT:" in text
    assert "<image>" in text
    message = refusal(folders(LLAVA) / "hf", chat_template="vicuna")
    assert "--chat-template: only has an effect on the way from Megatron to Hugging Face" in message


def test_the_published_configurations_are_read() -> None:
    from flagscale.vision.arguments import vision_of
    from flagscale.vision.tower import TOWERS
    from megatron.flagscale.convert.hf_pictures import read_config, write_config
    from megatron.flagscale.convert.megatron_args import checkpoint_arguments, task_arguments
    from megatron.flagscale.convert.megatron_model import model_of

    for name, config in PUBLISHED.items():
        model = read_config(config, name)
        assert model.vision
        assert model.vision.tower in TOWERS.values()
        assert bool(model.vision.tiling) == ("grids" in name)
        assert read_config(write_config(model, {"image_token_index": 5}), "again", model.family) == model
        arguments = checkpoint_arguments(model)
        assert model_of(arguments, model.vocab, "checkpoint", model.family) == model
        assert vision_of(arguments) == model.vision
        sizes = {one for one in task_arguments(model) if one.startswith("vision_")}
        assert sizes == {"vision_model_type"}, "the rest are the tower's own"


def test_a_picture_is_prepared_as_in_the_source(copy: Folders, tmp_path: Path) -> None:
    folder = copy(LLAVA)
    clip = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "crop_size": 30, "size": {"shortest_edge": 30}}
    padding = {**clip, "image_processor_type": "LlavaImageProcessor", "do_pad": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(padding))
    made = convert(folder, tmp_path / "megatron")
    assert made.model.vision
    assert made.model.vision.fit == "pad"
    convert(tmp_path / "megatron", tmp_path / "back")
    written = json.loads((tmp_path / "back" / "processor_config.json").read_text())["image_processor"]
    assert (written["image_processor_type"], written["do_pad"]) == ("LlavaImageProcessor", True)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"image_mean": [0.5, 0.5, 0.5]}, "`image_mean` is [0.5, 0.5, 0.5]; only [0.48"),
        ({"size": 31}, "`size` is 31; only {'shortest_edge': 30}"),
        ({"resample": 2}, "`resample` is 2; only 3"),
        ({"do_flip_channel_order": True}, "`do_flip_channel_order` is True, which is not understood"),
        (
            {"pad_size": {"height": 40, "width": 40}},
            "`pad_size` is {'height': 40, 'width': 40}, which is not",
        ),
        (
            {"image_processor_type": "ViTImageProcessor"},
            "`image_processor_type` is 'ViTImageProcessor'; only",
        ),
    ],
)
def test_a_folder_that_prepares_pictures_in_another_way_is_refused(
    keys: dict[str, Any], message: str, copy: Folders
) -> None:
    folder = copy(LLAVA)
    (folder / "preprocessor_config.json").write_text(json.dumps(keys))
    assert message in refusal(folder)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        (LLAVA, {"vision_feature_layer": [-2, -1]}, "only one layer is supported, from -3 to 3"),
        (LLAVA, {"vision_feature_layer": -4}, "`vision_feature_layer` is -4"),
        (
            LLAVA,
            {"vision_feature_select_strategy": "full"},
            "only 'default' is supported with a tower of the",
        ),
        (LLAVA, {"projector_hidden_act": "silu"}, "`projector_hidden_act` is 'silu'; only 'gelu'"),
        (LLAVA, {"multimodal_projector_bias": False}, "`multimodal_projector_bias` is False; only True"),
        (LLAVA, {"model_type": "llava_next"}, "`model_type` is 'llava_next', but LlavaForC"),
        (LLAVA, {"adapter_layers": 2}, "`adapter_layers` is 2, but models of the family llava are not known"),
        (LLAVA, {"image_token_index": 999}, "`image_token_index` is 999, which is not a token of"),
        (LLAVA, {"text_config": None}, "`text_config` is None, not an object"),
        (LLAVA, {"vision_config": None}, "`vision_config` is None, not an object"),
        (LLAVA, {"text_config": {"hidden_act": "gelu"}}, "text_config: `hidden_act` is 'gelu'; only 'silu'"),
        (
            LLAVA,
            {"vision_config": {"hidden_act": "gelu"}},
            "vision_config: `hidden_act` is 'gelu'; only 'quick",
        ),
        (LLAVA, {"vision_config": {"layer_norm_eps": 0.1}}, "`layer_norm_eps` is 0.1; only 1e-05"),
        (
            LLAVA,
            {"vision_config": {"image_size": "big"}},
            "`image_size` is 'big', not a positive whole number",
        ),
        (LLAVA, {"vision_config": {"rope_theta": 3}}, "`rope_theta` is 3, but models of the family clip"),
        (
            LLAVA,
            {"vision_config": {"model_type": "pixtral"}},
            "the tower 'pixtral' is not supported; known: clip_v",
        ),
        (LLAVA, {"vision_config": {"patch_size": 31}}, "patches of 31 pixels do not fit into tiles of 30"),
        (ONEVISION, {"vision_aspect_ratio": "square"}, "`image_aspect_ratio: square` needs"),
        (ONEVISION, {"image_grid_pinpoints": [[30, 31]]}, "each a multiple of 30"),
        (ONEVISION, {"image_grid_pinpoints": None}, "each a multiple of 30"),
    ],
)
def test_what_is_not_understood_is_refused_by_its_key(
    name: str, keys: dict[str, Any], message: str, copy: Folders
) -> None:
    assert message in refusal(change(copy(name), **keys))


def test_all_parts_report_at_once(copy: Folders) -> None:
    folder = change(
        copy(LLAVA),
        text_config={"mlp_bias": True},
        vision_config={"num_channels": 4},
        projector_hidden_act="relu",
    )
    message = refusal(folder)
    assert all(key in message for key in ("mlp_bias", "num_channels", "projector_hidden_act"))


def test_a_model_with_pictures_needs_its_tokenizer(copy: Folders) -> None:
    folder = copy(LLAVA)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    assert "is converted with its tokenizer, which has their placeholders" in refusal(folder)


def test_the_ids_of_the_language_model_are_kept(copy: Folders, tmp_path: Path) -> None:
    folder = change(
        copy(LLAVA), text_config={"bos_token_id": 7, "eos_token_id": [8, 9], "pad_token_id": None}
    )
    (folder / "generation_config.json").unlink()
    convert(folder, tmp_path / "megatron")
    convert(tmp_path / "megatron", tmp_path / "back")
    written = config_of(tmp_path / "back")
    for part in (written, written["text_config"]):
        assert (part["bos_token_id"], part["eos_token_id"]) == (7, [8, 9])


def test_a_family_without_a_class_in_transformers_is_not_nested(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--model: transformers has no class for the family aquila"):
        convert(folders(LLAVA) / "megatron", tmp_path / "back", family="aquila")


def test_a_missing_tensor_is_reported_by_its_usual_name(copy: Folders) -> None:
    folder = copy(ONEVISION)
    tensors = load_file(folder / "model.safetensors")
    del tensors["vision_tower.encoder.layers.1.mlp.fc2.bias"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "are missing: vision_tower.vision_model.encoder.layers.1.mlp.fc2.bias" in refusal(folder)


def test_several_pictures_as_single_tiles_are_reported(tmp_path: Path, folders: Folders) -> None:
    from dataclasses import replace

    from megatron.flagscale.convert.processor import laid_out_singly

    vision = MODELS[ONEVISION].vision
    assert vision.tiling
    assert laid_out_singly(vision) == ""
    single = replace(vision, tiling=replace(vision.tiling, tiles_several=False))
    assert "but vLLM tiles each of them" in laid_out_singly(single)


def test_the_template_of_a_published_folder_is_kept(folders: Folders, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    folder = Path(shutil.copytree(folders(ONEVISION) / "back", tmp_path / "published"))
    (folder / "chat_template.jinja").unlink()
    published = (
        "{% for m in messages %}{{ m['role'] + ' ' }}{% for part in m['content'] %}"
        "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
        "{{ '<|im_end|>' }}{% endfor %}"
    )
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": published}))
    convert(folder, tmp_path / "megatron")
    convert(tmp_path / "megatron", tmp_path / "back")
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many?"}]}]
    for one in (folder, tmp_path / "back"):
        text = AutoProcessor.from_pretrained(one).apply_chat_template(asked)
        assert text == "user <image>how many?<|im_end|>"


def test_a_tokenizer_without_its_file_encodes_as_in_the_training(copy: Folders, tmp_path: Path) -> None:
    """Beside a LLaVA's `config.json`, transformers 5.19 opens it without its class."""
    from transformers import AutoProcessor, AutoTokenizer

    sentencepiece = pytest.importorskip("sentencepiece")
    folder = copy(LLAVA)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["how many circles are there"] * 9),
            model_writer=file,
            vocab_size=40,
            hard_vocab_limit=False,
            user_defined_symbols=["<image>"],
            minloglevel=2,
        )
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    change(folder, image_token_index=3)
    convert(folder, tmp_path / "megatron")
    convert(tmp_path / "megatron", tmp_path / "back")
    trained = AutoTokenizer.from_pretrained(tmp_path / "megatron" / "tokenizer")
    served = AutoProcessor.from_pretrained(tmp_path / "back").tokenizer
    text = "how many <image> circles"
    assert trained(text).input_ids == served(text).input_ids


def write_parts(folder: Path, kind: str) -> Path:
    """Write a language model and a tower, each in a folder of its own, and return the tower's."""
    import transformers

    from flagscale_testing.pictures import write_tokenizer

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 3}
    config = transformers.LlamaConfig(**sizes, vocab_size=261, bos_token_id=256)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "language")
    write_tokenizer(folder / "language")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / "language" / name
        path.write_text(path.read_text().replace("<image>", "<other>"))
    images = {"image_size": 30, "patch_size": 14}
    made: Any
    if kind == "CLIP with its text encoder":
        made = transformers.CLIPModel(
            transformers.CLIPConfig(vision_config={**sizes, **images}, text_config=sizes)
        )
    elif kind == "CLIP":
        made = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, **images))
    else:
        made = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes, **images))
    made.save_pretrained(folder / "tower")
    return folder / "tower"


@pytest.mark.parametrize("kind", ["CLIP", "CLIP with its text encoder", "SigLIP"])
def test_a_language_model_and_a_tower_become_one_model(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    tower = Wanted(write_parts(tmp_path, kind), aspect_ratio="anyres_max_9")
    for to in ("huggingface", "megatron"):
        made = convert(tmp_path / "language", tmp_path / to, to=to, tower=tower)
    convert(tmp_path / "megatron", tmp_path / "back")
    assert same(tmp_path / "huggingface", tmp_path / "back")
    assert made.model.vision
    assert (made.model.vision.tower.layers, made.model.vocab) == (2, 262)
    tensors = tensors_of(tmp_path / "back")
    embedding = tensors["language_model.model.embed_tokens.weight"]
    old = tensors_of(tmp_path / "language")["model.embed_tokens.weight"]
    assert torch.equal(embedding[:-1], old)
    assert torch.allclose(embedding[-1], old.mean(0))
    first = "vision_model.encoder.layers.0.self_attn.q_proj.weight"
    stored = tensors_of(tower.folder)
    usual = stored[first] if first in stored else stored[first.removeprefix("vision_model.")]
    assert torch.equal(tensors[f"vision_tower.{first}"], usual)
    assert tensors["multi_modal_projector.linear_1.weight"].std() < 0.03
    _, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values()), report
    parts = [{"type": "image"}, {"type": "text", "text": "how many?"}]
    for to in ("huggingface", "back"):
        processor = AutoProcessor.from_pretrained(tmp_path / to)
        text = processor.apply_chat_template([{"role": "user", "content": parts}])
        assert text == "<|im_start|>user\n<image>\nhow many?<|im_end|>\n"
    assert processor.tokenizer("<image>").input_ids == [config_of(tmp_path / "back")["image_token_index"]]


def test_a_tower_that_cannot_be_read_is_refused(tmp_path: Path, folders: Folders) -> None:
    folder = write_parts(tmp_path, "CLIP")

    def message(source: Path = tmp_path / "language", **wanted: Any) -> str:
        with pytest.raises(UserError) as caught:
            convert(source, tmp_path / "made", tower=Wanted(folder, **wanted))
        return str(caught.value)

    assert "--tower: has no effect: the model already has a tower" in message(folders(LLAVA) / "hf")
    assert "--tower-layer -5; only one layer is supported, from -3 to 3" in message(layer=-5)
    assert "--image-aspect-ratio: `image_aspect_ratio: wide` is not one of" in message(aspect_ratio="wide")
    assert "--image-grid-pinpoints: `image_grid_pinpoints` has no effect" in message(
        pinpoints="(1x1),...,(2x2)"
    )
    tensors = load_file(folder / "model.safetensors")
    tensors["pre_layrnorm.bias"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "vision_model.pre_layrnorm.bias is stored as F32 [3], but config.json gives [64]" in message()
    change(folder, model_type="vit")
    assert "the tower 'vit' is not supported; known: clip_vision_model, siglip_vision_model" in message()
