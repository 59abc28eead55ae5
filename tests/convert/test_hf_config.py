"""`config.json` is read as transformers reads it, and written so that transformers and vLLM can open it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError

from flagscale.errors import UserError
from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.files import read_json
from megatron.flagscale.convert.hf_config import read_config, write_config
from megatron.flagscale.convert.hf_defaults import _FILE, build_catalog, class_defaults
from megatron.flagscale.convert.megatron_args import checkpoint_arguments, task_arguments
from megatron.flagscale.convert.megatron_model import model_of
from megatron.flagscale.convert.model import Model, Rope
from tests.convert.public_configs import CONFIGS, small
from tests.convert.test_hf_rope import effect

ROOT = Path(__file__).parents[2]
WITH_CLASS = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
    *("gemma2", "gemma3", "gpt_oss"),
)
MODEL = Model("llama", 2, 64, 96, 4, 2, 16, 300, 4096, 1e-5, Rope(), False, "float32")


def by_type(rope: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the rotary positions of layers without a window, and of those with one if these have others."""
    return rope.get("full_attention", rope), rope.get("sliding_attention", {})


def differences(ours: Model, theirs: Any) -> dict[str, tuple[Any, Any]]:
    """Return the keys that we and transformers read differently, with both values."""
    found = {}
    for field, key in registry.load(ours.family).keys.items():
        value = getattr(theirs, key, None) or 0
        if field == "head_dim":
            value = value or theirs.hidden_size // theirs.num_attention_heads
        if field == "window" and value >= ours.positions:
            value = 0
        found[key] = (getattr(ours, field), value)
    assert ours.rope is not None
    full, of_windows = by_type(theirs.rope_parameters)
    found["rope_theta"] = (ours.rope.theta, full["rope_theta"])
    found["the base of windows"] = (ours.settings.get("window_rotary_base"), of_windows.get("rope_theta"))
    found["tie_word_embeddings"] = (ours.tied, theirs.tie_word_embeddings)
    return {key: pair for key, pair in found.items() if pair[0] != pair[1]}


@pytest.mark.slow
def test_the_catalog_is_that_of_the_installed_transformers() -> None:
    assert json.loads(json.dumps(build_catalog())) == json.loads(_FILE.read_text()), "run `make catalog`"


@pytest.mark.parametrize("family", WITH_CLASS)
def test_a_missing_key_has_the_default_of_the_class(family: str) -> None:
    from transformers import AutoConfig

    many = {"hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8}
    whole = small(family, **many, max_position_embeddings=8192)
    for key in registry.load(family).keys.values():
        config = {name: value for name, value in whole.items() if name != key}
        assert differences(read_config(config, "config.json"), AutoConfig.for_model(**config)) == {}


@pytest.mark.parametrize("family", ["llama", "mistral", "mixtral"])
def test_null_sizes_are_derived_from_others(family: str) -> None:
    model = read_config(small(family, head_dim=None), "config.json")
    assert model.head_dim == 16
    if family == "llama":
        assert read_config(small(family, num_key_value_heads=None), "config.json").groups == 4


def test_the_rotary_base_of_mixtral_is_a_million() -> None:
    assert read_config(small("mixtral"), "config.json").rope == Rope(1e6)
    assert read_config(small("llama"), "config.json").rope == Rope(1e4)
    assert class_defaults("gpt_oss")["rope_theta"] == 150000.0


@pytest.mark.parametrize("name", CONFIGS)
def test_well_known_folders_are_read(name: str) -> None:
    family, config = CONFIGS[name]
    assert read_config(config, "config.json").family == family


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_what_is_written_as_the_same_model(name: str) -> None:
    from transformers import AutoConfig

    family, config = CONFIGS[name]
    model = read_config(config, "config.json")
    written = json.loads(json.dumps(write_config(model, {"eos_token_id": 2})))
    assert read_config(written, "written", family) == model
    theirs, again = (AutoConfig.for_model(**deepcopy(one)) for one in (config, written))
    for field, key in registry.load(family).keys.items():
        one, other = getattr(theirs, key, None), getattr(again, key)
        if field == "window":  # as long as the longest sequence or longer, it is left out
            one = one if one and one < model.positions else None
        assert one == other or (field == "head_dim" and one is None), key
    for ropes in zip(by_type(theirs.rope_parameters), by_type(again.rope_parameters), strict=True):
        one, other = ({"rope_type": "", "rope_theta": 0, **rope} for rope in ropes)
        assert effect(one) == effect(other)
    assert (
        read_config(json.loads(again.to_json_string(use_diff=False)), "saved by transformers", family)
        == model
    )


@pytest.mark.parametrize("text", ["[]", "null", "7", '"{}"', "[{}]", "[" * 10**5, "{", "\ufeff{}", ""])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_file_without_an_object_is_refused(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=rf"{name}: (an object in braces is expected|invalid JSON)"):
        read_json(path)


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_a_window_is_carried_to_megatron_and_back(family: str) -> None:
    model = read_config(small(family, sliding_window=1024), "config.json")
    assert model.window == 1024
    assert task_arguments(model)["window_size"] == "1023,0"
    arguments = checkpoint_arguments(model)
    assert arguments["window_size"] == (1023, 0)
    assert model_of(arguments, model.vocab, "checkpoint", family) == model
    assert write_config(model, {})["sliding_window"] == 1024
    with pytest.raises(UserError, match="the model is not llama"):
        model_of(
            checkpoint_arguments(replace(model, family="mistral", experts=0)), 300, "checkpoint", "llama"
        )


def test_dropout_is_carried_to_megatron_whose_default_is_another() -> None:
    model = read_config(small("llama", attention_dropout=0.25), "config.json")
    assert task_arguments(model) | {"attention_dropout": 0.25, "hidden_dropout": 0.0} == task_arguments(model)
    assert model_of(checkpoint_arguments(model), 300, "checkpoint", "llama") == model
    assert task_arguments(MODEL)["attention_dropout"] == 0.0


def test_slips_are_refused_or_read_as_by_transformers() -> None:
    from transformers import AutoConfig

    chance, read = random.Random(1), 0
    odd = [None, True, -1, 0, 4.0, 10**400, float("nan"), "", "4", [], [[]], {}, {"rope_type": []}, "llama"]
    bases = [config for _, config in CONFIGS.values()]
    keys = sorted({key for config in bases for key in config} | {"rope_parameters", "tie_word_embeddings"})
    for _ in range(1500):
        config = deepcopy(chance.choice(bases))
        for key in chance.sample(keys, chance.randint(1, 4)):
            target = config
            if isinstance(config.get(key), dict) and config[key] and chance.random() < 0.5:
                target, key = config[key], chance.choice(sorted(config[key]))
            if chance.random() < 0.3:
                target.pop(key, None)
            else:
                target[key] = deepcopy(chance.choice(odd))
        with suppress(UserError):
            model = read_config(config, "config.json")
            written = json.loads(json.dumps(write_config(model, {})))
            assert read_config(written, "written", model.family) == model
            read += 1
            named = {**config, "model_type": registry.load(model.family).model_type}
            with suppress(StrictDataclassError):  # transformers also checks the types of harmless keys
                assert differences(model, AutoConfig.for_model(**named)) == {}, config
    assert read > 200


VLLM_OPENS = """
import json, sys, tempfile
from copy import deepcopy
from pathlib import Path
from transformers import AutoConfig
from vllm.transformers_utils.config import get_config
from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.hf_config import read_config, write_config
from tests.convert.public_configs import CONFIGS
from tests.convert.test_hf_config import by_type
for name, (family, config) in CONFIGS.items():
    with tempfile.TemporaryDirectory() as folder:
        written = write_config(read_config(config, name), {"eos_token_id": 2})
        Path(folder, "config.json").write_text(json.dumps(written))
        opened = get_config(folder, trust_remote_code=False)
    theirs = AutoConfig.for_model(**deepcopy(config))
    assert opened.architectures == [registry.load(family).architecture]
    for key in registry.load(family).keys.values():
        expected = getattr(theirs, key, None)
        assert key in ("head_dim", "sliding_window") or getattr(opened, key) == expected, (name, key)
    for ropes in zip(by_type(opened.rope_parameters), by_type(theirs.rope_parameters)):
        assert ropes[0].get("rope_theta") == ropes[1].get("rope_theta"), name
    assert opened.tie_word_embeddings == theirs.tie_word_embeddings
print("all of", len(CONFIGS))
"""


@pytest.mark.slow
def test_vllm_opens_what_is_written() -> None:
    words = [sys.executable, "-c", VLLM_OPENS]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == [f"all of {len(CONFIGS)}"], done.stderr[-3000:]


@pytest.mark.parametrize(
    ("family", "changes", "note"),
    [
        ("gpt_oss", {}, ""),
        ("gpt_oss", {"swiglu_limit": 7}, ""),
        ("gpt_oss", {"rms_norm_eps": 1e-6}, "vLLM does not read rms_norm_eps, and computes"),
        (
            "gpt_oss",
            {"swiglu_limit": 5.0, "tie_word_embeddings": True},
            "vLLM does not read swiglu_limit, tie_word_embeddings, and",
        ),
        ("gemma2", {"attn_logit_softcapping": None}, ""),
        (
            "gemma2",
            {"attn_logit_softcapping": None, "tie_word_embeddings": False},
            "vLLM takes the embedding for the output",
        ),
        ("gemma2", {"tie_word_embeddings": False}, "='eager'; vLLM takes the embedding for the output"),
    ],
)
def test_what_the_libraries_read_differently_is_said(
    family: str, changes: dict[str, object], note: str
) -> None:
    window = {"sliding_window": 128}
    said = registry.load(family).caveat(read_config(small(family, **window, **changes), "config.json"))
    assert note in said
    assert bool(note) == bool(said)
