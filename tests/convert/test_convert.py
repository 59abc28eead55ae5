"""The results of conversions: tokenizer, configuration, shards, precision, experts; and the command line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from flagscale.checks.weight_files import INDEX
from flagscale.errors import UserError
from flagscale_testing.conversion import same, tensors_of
from megatron.flagscale.convert.convert import convert
from megatron.flagscale.convert.upcycle import Upcycling

ROOT = Path(__file__).parents[2]
Models = Callable[[str], Path]


def test_shards_hold_the_same_tensors_as_one_file(models: Models, tmp_path: Path) -> None:
    source = models("Mixtral") / "megatron"
    convert(source, tmp_path / "many", shard_bytes=100_000)
    shards = sorted((tmp_path / "many").glob("model-*-of-*.safetensors"))
    assert len(shards) > 3
    assert all(shard.stat().st_size < 120_000 for shard in shards)
    index = json.loads((tmp_path / "many" / INDEX).read_text())
    assert {file.name for file in shards} == set(index["weight_map"].values())
    assert same(tmp_path / "many", models("Mixtral") / "hf")
    convert(tmp_path / "many", tmp_path / "again")
    convert(tmp_path / "again", tmp_path / "one")
    assert same(tmp_path / "one", models("Mixtral") / "hf")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_precision_can_be_chosen(dtype: str, models: Models, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    convert(models("Qwen2, 2.5") / "megatron", tmp_path / "cast", dtype=dtype)
    original = tensors_of(models("Qwen2, 2.5") / "hf")
    for name, tensor in tensors_of(tmp_path / "cast").items():
        assert torch.equal(tensor, original[name].to(getattr(torch, dtype)))
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "cast")
    assert opened.dtype == getattr(torch, dtype)


def test_no_value_of_mixed_precisions_is_rounded(models: Models, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models("Llama 2") / "hf", tmp_path / "mixed"))
    stored = {
        name: tensor.to(torch.bfloat16 if "q_proj" in name or "gate" in name else tensor.dtype)
        for name, tensor in tensors_of(folder).items()
    }
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    convert(folder, tmp_path / "megatron")
    convert(tmp_path / "megatron", tmp_path / "back")
    back = tensors_of(tmp_path / "back")
    assert all(torch.equal(back[name].double(), tensor.double()) for name, tensor in stored.items())


def test_a_precision_that_is_not_named_is_that_of_the_weights(models: Models, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = Path(shutil.copytree(models("Llama 2, bf16") / "hf", tmp_path / "nameless"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": None}))
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
    assert convert(folder, tmp_path / "megatron").model.dtype == "bfloat16"


def test_the_tokenizer_is_copied_in_both_directions(models: Models, tokenizer: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    convert(models("Llama 2") / "hf", tmp_path / "megatron", tokenizer=tokenizer)
    task = yaml.safe_load((tmp_path / "megatron" / "model.yaml").read_text())
    assert task["tokenizer_type"] == "HuggingFaceTokenizer"
    assert task["tokenizer_model"] == str(tmp_path / "megatron" / "tokenizer")
    made = convert(tmp_path / "megatron", tmp_path / "hf")
    assert made.notices == ()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "hf")) == 100
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["vocab_size"]) == (None, 0, 250)
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"] == 0


def test_special_ids_survive_without_a_tokenizer(models: Models, tmp_path: Path) -> None:
    made = convert(models("Llama 2") / "megatron", tmp_path / "hf")
    assert "no tokenizer is included" in made.notices[0]
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_settings_for_generating_in_config_json_are_not_lost_silently(models: Models, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models("Llama 2") / "hf", tmp_path / "old"))
    config = json.loads((folder / "config.json").read_text())
    usual = {"temperature": None, "max_length": 20, "use_cache": False, "repetition_penalty": 1}
    changed = {"do_sample": True, "repetition_penalty": 1.3}
    for name, keys, beside in (("a", usual, False), ("b", changed, True), ("c", {**usual, **changed}, False)):
        (folder / "config.json").write_text(json.dumps({**config, **keys}))
        if not beside:
            (folder / "generation_config.json").unlink(missing_ok=True)
        else:
            (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
        notices = convert(folder, tmp_path / name).notices[1:]
        assert len(notices) == (name == "c"), notices
    assert notices[0].startswith("do_sample, repetition_penalty of config.json are left out: ")


def test_a_tokenizer_with_too_many_tokens_is_refused(models: Models, tokenizer: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    larger = AutoTokenizer.from_pretrained(tokenizer)
    larger.add_tokens([f"<{number}>" for number in range(200)])
    larger.save_pretrained(tmp_path / "larger")
    with pytest.raises(UserError, match=r"300 tokens, but the model has only 250\n *remove the added ones"):
        convert(models("Llama 2") / "hf", tmp_path / "target", tokenizer=tmp_path / "larger")


def test_the_true_vocabulary_size_can_be_given(models: Models, tmp_path: Path) -> None:
    made = convert(models("Llama 2") / "megatron", tmp_path / "hf", vocab_size=200)
    assert made.model.vocab == 200
    assert tensors_of(tmp_path / "hf")["lm_head.weight"].shape == (200, 64)


def test_a_model_can_be_rewritten_in_its_own_format(models: Models, tmp_path: Path) -> None:
    convert(models("Qwen3") / "hf", tmp_path / "hf", to="huggingface")
    convert(models("Qwen3") / "megatron", tmp_path / "megatron", to="megatron")
    convert(tmp_path / "megatron", tmp_path / "back")
    assert same(tmp_path / "hf", models("Qwen3") / "hf")
    assert same(tmp_path / "back", models("Qwen3") / "hf")


@pytest.mark.parametrize(("experts", "topk"), [(4, 2), (3, 1), (2, 2)])
def test_an_upcycled_model_has_the_logits_of_the_dense_one(
    experts: int, topk: int, models: Models, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, MixtralForCausalLM

    convert(models("Llama 2") / "hf", tmp_path / "moe", to="huggingface", upcycling=Upcycling(experts, topk))
    dense = AutoModelForCausalLM.from_pretrained(models("Llama 2") / "hf")
    mixture = AutoModelForCausalLM.from_pretrained(tmp_path / "moe")
    assert isinstance(mixture, MixtralForCausalLM)
    routers = [tensor for name, tensor in tensors_of(tmp_path / "moe").items() if "gate.weight" in name]
    assert len(routers) == 4
    assert not torch.equal(routers[0], routers[1])
    tokens = torch.randint(0, 250, (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(mixture(tokens).logits, dense(tokens).logits, atol=1e-4)


def test_upcycling_depends_only_on_its_seed(models: Models, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        how = Upcycling(2, seed=seed)
        convert(models("Llama 2") / "hf", tmp_path / name, to="huggingface", upcycling=how)
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("Mixtral", Upcycling(4), "already has experts"),
        ("Qwen3", Upcycling(4), "experts cannot be added to the family qwen3"),
        ("Llama 2", Upcycling(0), "--experts: 0 is not a number of experts"),
        ("Llama 2", Upcycling(2, 3), "3 of 2 experts cannot be chosen"),
    ],
)
def test_unsupported_upcycling_is_refused(
    name: str, how: Upcycling, message: str, models: Models, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        convert(models(name) / "hf", tmp_path / "target", upcycling=how)


def run(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in the working directory `folder`."""
    command = [sys.executable, str(ROOT / "tools" / "checkpoint" / "convert.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_command_converts_and_never_overwrites(models: Models, tmp_path: Path) -> None:
    done = run("--load", models("Llama 2") / "hf", "--save", "made", "--dtype", "bf16", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("made: llama, 27 tensors, ")
    assert "100 % after" in done.stderr
    assert "note: no tokenizer is included" in done.stderr
    again = run("--load", models("Llama 2") / "hf", "--save", "made", folder=tmp_path)
    assert again.returncode == 2
    assert again.stderr == "error: made: already exists; use --overwrite to replace it\n"


def test_the_command_refuses_an_invalid_size(tmp_path: Path) -> None:
    done = run("--load", "a", "--save", "b", "--max-shard-size", "5 GiB of", folder=tmp_path)
    assert done.returncode == 2
    assert "'5 GiB of' is not a size; write it like 5GB or 500MB" in done.stderr


def test_the_command_refuses_expert_options_without_experts(tmp_path: Path) -> None:
    done = run("--load", "a", "--save", "b", "--topk", 1, "--router-std", 0.1, folder=tmp_path)
    assert done.returncode == 2
    assert "error: --topk: has no effect without --experts" in done.stderr
    assert "error: --router-std: has no effect without --experts" in done.stderr


@pytest.mark.slow
def test_the_command_compares_logits(models: Models, tmp_path: Path) -> None:
    there = ("--load", models("Qwen3") / "hf", "--save", "there", "--verify-logits")
    assert "note: logits of Megatron and transformers differ by" in run(*there, folder=tmp_path).stderr
    back = ("--load", "there", "--save", "back", "--verify-logits", "--dtype", "fp16")
    refused = run(*back, folder=tmp_path)
    assert refused.returncode == 2
    assert "more than 1e-04; nothing was written\n    --dtype rounds the weights" in refused.stderr
    assert not (tmp_path / "back").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys", [{"attn_implementation": "flash_attention_2"}, {"output_attentions": True, "return_dict": False}]
)
def test_logits_are_compared_without_what_the_folder_chooses(
    keys: dict[str, object], models: Models, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(models("Qwen3") / "hf", tmp_path / "chosen"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))
    # It is 0 on one processor and a rounding error on another, but the same with and without the keys.
    without = convert(models("Qwen3") / "hf", tmp_path / "without", verify=True).notices[-1]
    assert convert(folder, tmp_path / "megatron", verify=True).notices[-1] == without
    (difference,) = re.findall(r"logits of Megatron and transformers differ by (\S+)", without)
    assert float(difference) < 2e-6


def test_the_engine_is_not_imported(models: Models, tmp_path: Path) -> None:
    # Importing it takes seconds, and on a machine without CUDA its patches of torch break transformers.
    code = (
        "import sys; from megatron.flagscale.convert.convert import convert; "
        "convert(sys.argv[1], 'hf'); convert('hf', 'megatron'); "
        "print([name for name in sys.modules if name.startswith(('megatron.core', 'megatron.training'))])"
    )
    command = [sys.executable, "-c", code, str(models("Llama 2") / "megatron")]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr
