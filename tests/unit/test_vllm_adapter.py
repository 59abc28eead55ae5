"""A vLLM job from an experiment: servers and batch inference, and what is refused before they start."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flagscale.config.schema import Task
from flagscale.config.source_map import SourceMap
from flagscale.engines.vllm.adapter import VLLM
from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.engines.vllm.refused import REMOVED
from flagscale.values import Host, Job, Service, address_of
from tests.unit.vllm_jobs import ONE, gpus, inference, job_of, refusal

Build = Callable[..., Job]


@pytest.fixture
def model(tmp_path: Path, write_model: Callable[..., Path]) -> str:
    return str(write_model(tmp_path / "m"))


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return partial(job_of, tmp_path)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    return partial(refusal, tmp_path)


def value(service: Service, option: str) -> str:
    return service.argv[service.argv.index(option) + 1]


def test_one_server(build: Build, model: str) -> None:
    job = build("serve", {"model": model, "engine": {"dtype": "float32", "enforce_eager": True}})
    (server,) = job.services[0]
    assert (server.name, server.url, server.model) == ("server", "http://127.0.0.1:8000", model)
    assert server.argv == (
        *("--model", model, "--dtype", "float32", "--enforce-eager"),
        *("--host", "127.0.0.1", "--port", "8000", "--shutdown-timeout", "20"),
    )
    assert job.role.entrypoint == "vllm_flagscale.server"
    assert job.role.env["SPT_NOENV"] == "1"
    given = {"load_format": "auto", "skip_tokenizer_init": False, "limit_mm_per_prompt": "{}"}
    assert job.inputs == {"models": [{"model": model, **given}]}
    assert job.notices == ()


def test_several_models_share_the_keys_beside_them(build: Build, model: str) -> None:
    several = {
        "chat": {"model": model, "instances": 2},
        "small": {"model": model, "dtype": "float32", "port": 9000},
    }
    job = build("serve", {"dtype": "bfloat16", "models": several}, gpus(3))
    services = job.services[0]
    assert [one.name for one in services] == ["chat", "chat.0", "chat.1", "small"]
    assert [one.url.rpartition(":")[2] for one in services] == ["8000", "8001", "8002", "9000"]
    assert [value(one, "--dtype") for one in services[1:]] == ["bfloat16", "bfloat16", "float32"]
    assert [one.model for one in services] == ["chat", "chat", "chat", "small"]
    assert [one.devices for one in services] == [(), (0,), (1,), (2,)]


def test_devices_are_assigned_by_index(build: Build, model: str) -> None:
    keys = {"model": model, "tensor_parallel_size": 2, "instances": 2}
    job = build("serve", keys, gpus(4))
    assert [one.devices for one in job.services[0]] == [(), (0, 1), (2, 3)]
    assert build("serve", {**keys, "instances": 1}, gpus(2)).services[0][0].devices == ()
    context = {**keys, "instances": 1, "prefill_context_parallel_size": 2}
    assert build("serve", context, gpus(5)).services[0][0].devices == (0, 1, 2, 3)


def test_tensor_parallel_over_hosts(build: Build, model: str) -> None:
    keys = {"model": model, "tensor_parallel_size": 4, "api_server_count": 2}
    job = build("serve", keys, gpus(2, 2), master_port=7000)
    (server,), (part,) = job.services[0], job.services[1]
    assert (part.name, part.url) == ("server.part1", "")
    for number, one in enumerate((server, part)):
        assert value(one, "--nnodes") == "2"
        assert value(one, "--node-rank") == str(number)
        assert value(one, "--master-addr") == address_of(0)
        assert value(one, "--master-port") == "7000"
        assert one.env == {"VLLM_HOST_IP": address_of(number)}
    assert (server.ports, part.ports) == ((7000,), ())
    assert "--api-server-count" in server.argv
    assert "--api-server-count" not in part.argv
    assert "--headless" in part.argv
    assert "--headless" not in server.argv
    assert "--port" not in part.argv


def test_data_parallel_over_hosts(build: Build, model: str) -> None:
    job = build("serve", {"model": model, "data_parallel_size": 4}, gpus(2, 2))
    server, part = job.services[0][0], job.services[1][0]
    assert value(server, "--data-parallel-size-local") == value(part, "--data-parallel-size-local") == "2"
    assert value(part, "--data-parallel-start-rank") == "2"
    assert value(part, "--data-parallel-address") == address_of(0)
    assert "--nnodes" not in part.argv


def test_servers_that_others_can_reach_are_reported(build: Build, model: str) -> None:
    keys = {"model": model, "instances": 2, "endpoint": False}
    job = build("serve", {**keys, "host": "0.0.0.0"}, gpus(1, 1))
    urls = [job.services[rank][0].url for rank in (0, 1)]
    assert urls == [f"http://{address_of(0)}:8000", f"http://{address_of(1)}:8001"]
    assert "server.0, server.1: answers everyone" in job.notices[0]
    with_key = build("serve", {"model": model, "host": "0.0.0.0", "api_key": "k"}, gpus(1))
    assert with_key.notices == ()
    apart = build("serve", keys, gpus(1, 1))
    assert "server.0, server.1: answers only on its host's loopback address" in apart.notices[0]


def test_an_empty_key_or_host_does_not_open_a_server(
    build: Build, refused: Callable[..., str], model: str, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("\n")
    file = str(tmp_path / "key")
    assert "contains no key" in refused("serve", {"model": model, "api_key_file": file})
    assert "non-empty" in refused("serve", {"model": model, "api_key": ""})
    assert build("serve", {"model": model, "api_key_file": None, "api_key": None}).secrets == {}
    (tmp_path / "key").write_text("k")
    both = {"model": model, "api_key_file": file, "api_key": "k"}
    assert "not both" in refused("serve", both)
    assert build("serve", {"model": model, "host": None}).services[0][0].url == "http://127.0.0.1:8000"


def test_ports_count_up_from_the_one_beside_the_models(build: Build, model: str) -> None:
    keys = {"port": 9000, "model": model, "models": {"a": {"instances": 2}, "b": {}, "c": {"port": 7000}}}
    services = build("serve", keys, gpus(4)).services[0]
    assert {one.name: one.url.rpartition(":")[2] for one in services} == {
        "a": "9000",
        "a.0": "9001",
        "a.1": "9002",
        "b": "9003",
        "c": "7000",
    }


def test_values_of_vllm_s_own_types(build: Build, refused: Callable[..., str], model: str) -> None:
    keys = {"model": model, "max_num_batched_tokens": "8k", "middleware": ["a.b", "c.d"]}
    argv = build("serve", keys).services[0][0].argv
    assert argv[argv.index("--max-num-batched-tokens") + 1] == "8k"
    assert [argv[at + 1] for at, word in enumerate(argv) if word == "--middleware"] == ["a.b", "c.d"]
    for wrong in (128.0, "abc", "1.5"):
        assert "takes a whole number" in refused("serve", {"model": model, "max_model_len": wrong})
    assert "not 1024" in refused("serve", {"model": model, "max_model_len": "1K"})
    assert "(JSON)" in refused("serve", {"model": model, "allowed_origins": "*"})


def test_secrets_leave_argv(build: Build, model: str, tmp_path: Path) -> None:
    job = build("serve", {"model": model, "api_key": "geheim", "hf_token": "hf"})
    assert job.secrets == {"VLLM_API_KEY": "geheim", "HF_TOKEN": "hf"}
    assert "geheim" not in str(job.services)
    (tmp_path / "key").write_text("from a file\n")
    job = build("serve", {"model": model, "api_key_file": str(tmp_path / "key")})
    assert job.secrets == {"VLLM_API_KEY": "from a file"}


def test_removed_arguments_are_named_with_what_to_write_instead(
    refused: Callable[..., str], model: str
) -> None:
    removed = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "task": "generate"}
    said = refused("serve", {"model": model, **removed})
    assert said.count("- serve.") == 2
    assert "no longer has the argument `rope_scaling`" in said
    assert "use `hf_overrides: {rope_parameters: {...}}`" in said
    assert not REMOVED.keys() & vllm_catalog().server.by_name.keys()


@pytest.mark.parametrize(
    "keys",
    [
        {"tool_cal_parser": "hermes", "enable_auto_tool_choice": True},
        {"spec_modl": "a/b", "spec_tokens": 2},
        {"spec_method": "ngram", "spec_token": 2},
        {"speculative_config": {"methd": "ngram", "num_speculative_tokens": 2}},
    ],
)
def test_a_misspelt_argument_is_not_missed_again(
    refused: Callable[..., str], model: str, keys: dict[str, Any]
) -> None:
    assert refused("serve", {"model": model, **keys}).count("- serve.") == 1


def test_mappings_reach_the_engine_as_json(build: Build, model: str) -> None:
    job = build("serve", {"model": model, "compilation_config": {"mode": 3}})
    assert json.loads(value(job.services[0][0], "--compilation-config")) == {"mode": 3}


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({"tensor_paralel_size": 2}, "did you mean `tensor_parallel_size`?"),
        ({"dtype": "float23"}, "`dtype` cannot be 'float23'"),
        ({"port": "many"}, "`port` takes a whole number"),
        ({"port": 70000}, "port 70000 of `server` must be between 1 and 65535"),
        ({"port": 0}, "port 0 of `server` must be between 1 and 65535"),
        ({"tensor_parallel_size": 0}, "`tensor_parallel_size` is 0; it must be at least 1"),
        ({"data_parallel_size": -1}, "`data_parallel_size` is -1; it must be at least 1"),
        ({"data_parallel_hybrid_lb": True}, "use `instances` for several"),
        ({"device_ids": "0,1"}, "FlagScale derives it"),
        ({"headless": True}, "`headless` cannot be given here"),
        ({"nnodes": 2}, "FlagScale derives it"),
        ({"instances": 0}, "at least 1"),
        ({"instances": True}, "at least 1"),
        ({"tensor_parallel_size": 2}, "needs 2 devices; free: localhost 1"),
        (
            {"instances": 2},
            "need 2 devices in all, and there is 1 slot: one model needs 1 device; free: localhost 0",
        ),
        ({"instance": 2}, "did you mean `instances`?"),
        ({"endpoints": False}, "did you mean `endpoint`?"),
        ({"api_key_fil": "k"}, "did you mean `api_key_file`?"),
        ({"tensor_parallel_size": 3}, "the model's 4 attention heads cannot be divided evenly by 3"),
        ({"pipeline_parallel_size": 3}, "the model has only 2 layers for 3 pipeline stages"),
        (
            {"max_model_len": 512},
            "the model supports sequences of at most 256 tokens (max_position_embeddings), not 512",
        ),
        ({"model": "./absent"}, "no such model folder"),
        ({"model": None}, "a model is required here"),
        ({"tokenizer": "./absent"}, "no such tokenizer"),
        ({"chat_template": "./absent.jinja"}, "./absent.jinja: no such file"),
        ({"api_key": 3}, "`api_key` takes one non-empty text"),
        ({"api_key_file": "/absent"}, "No such file"),
        ({"models": {}}, "a mapping of names to models is expected here"),
        ({"models": {"a/b": {}}}, "is not a valid model name"),
        ({"models": {"a": 3}}, "the keys of a model are expected here"),
        ({"models": {"a": {"api_key": "k"}}}, "applies to all models"),
        ({"models": {"a": {"port": 9000}, "b": {"port": 9000}}}, "is also used by `a`"),
        ({"models": {"a": {"instances": 2}, "a.0": {}}}, "two services would have the name `a.0`"),
    ],
)
def test_wrong_servers(
    refused: Callable[..., str], model: str, change: dict[str, Any], reported: str
) -> None:
    hosts = (Host(0, "localhost", 3, "cpu"),) if "models" in change else ONE
    assert reported in refused("serve", {"model": model, **change}, hosts)


def test_ports_and_devices_are_judged_beside_other_mistakes(refused: Callable[..., str], model: str) -> None:
    wrong = {"model": model, "port": 70000, "instances": 2, "dtype": "float23", "max_model_len": 512}
    found = refused("serve", wrong)
    for what in ("float23", "512", "need 2 devices", "port 70000"):
        assert what in found
    unsure = refused("serve", {**wrong, "port": "many", "tensor_paralel_size": 2})
    assert "need 2 devices" not in unsure


@pytest.mark.parametrize(
    ("config", "reported"),
    [
        (
            {"architectures": ["LamaForCausalLM"]},
            "does not support its architecture `LamaForCausalLM` (did you mean",
        ),
        ({"hidden_size": 64}, "attention head size 16"),
        ({"head_dim": 24}, "attention head size 24"),
        ({"kv_lora_rank": 24, "qk_rope_head_dim": 8}, "(supported: 576, as published: 512 + 64)"),
    ],
)
def test_wrong_models(
    refused: Callable[..., str],
    write_model: Callable[..., Path],
    tmp_path: Path,
    config: dict[str, Any],
    reported: str,
) -> None:
    assert reported in refused("serve", {"model": str(write_model(tmp_path / "n", **config))})


def test_latent_attention_is_judged_by_the_width_of_its_latents(
    build: Build, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    latent = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
    folder = write_model(tmp_path / "n", hidden_size=7168, num_attention_heads=128, **latent)
    assert build("serve", {"model": str(folder)})


@pytest.mark.parametrize("escape", [{"model_impl": "transformers"}, {"hf_overrides": {"a": 1}}])
def test_an_unknown_architecture_may_be_intended(
    build: Build, write_model: Callable[..., Path], tmp_path: Path, escape: dict[str, Any]
) -> None:
    folder = write_model(tmp_path / "n", architectures=["OwnForCausalLM"])
    assert build("serve", {"model": str(folder), **escape})


def test_positions_may_be_stretched(build: Build, write_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "n", rope_scaling={"rope_type": "linear", "factor": 4.0})
    assert build("serve", {"model": str(folder), "max_model_len": 1024})
    assert build("inference", inference(str(folder), max_model_len="1K"))


def test_a_length_beyond_the_models_is_allowed_by_a_variable(
    build: Build, refused: Callable[..., str], write_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "n", rope_scaling={"rope_type": "yarn", "factor": 4.0})
    tasks = {
        "serve": {"model": str(folder), "max_model_len": 1024},
        "inference": inference(str(folder), max_model_len=1024),
    }
    for task, keys in tasks.items():
        what = "at most 256 tokens (max_position_embeddings), not 1024; its rotary scaling `yarn` does not"
        assert what in refused(task, keys)
        job = build(task, keys, envs={"VLLM_ALLOW_LONG_MAX_MODEL_LEN": 1})
        assert f"max_model_len: the model supports sequences of {what[:22]}" in job.notices[0]
        assert "VLLM_ALLOW_LONG_MAX_MODEL_LEN accepts it" in job.notices[0]


def test_a_lower_precision_is_reported(
    build: Build, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = str(write_model(tmp_path / "n", dtype="float32"))
    what = "the model is float32, but vLLM computes in bfloat16 by default; `dtype: float32` keeps float32"
    for task, keys in {"serve": {"model": model}, "inference": inference(model)}.items():
        assert next(one for one in build(task, keys).notices if "float32" in one).endswith(what)
    for dtype in ("float32", "bfloat16", "half"):
        assert not any("float32" in one for one in build("serve", {"model": model, "dtype": dtype}).notices)
    (on_chips,) = (one for one in build("serve", {"model": model}, gpus(1)).notices if "float32" in one)
    assert "in bfloat16 by default (in float16 on chips without bfloat16)" in on_chips


def test_aquila_is_known(build: Build, write_model: Callable[..., Path], tmp_path: Path) -> None:
    assert build("serve", {"model": str(write_model(tmp_path / "n", architectures=["AquilaForCausalLM"]))})


def test_hosts_that_do_not_fit(refused: Callable[..., str], model: str) -> None:
    assert "no model runs on gpu-1" in refused("serve", {"model": model}, gpus(1, 1))
    assert "needs all its hosts" in refused("serve", {"model": model}, gpus(1, 1), nnodes="1:2")


def test_keys_of_torchrun_are_refused(refused: Callable[..., str], model: str) -> None:
    reported = refused("serve", {"model": model}, tee="1", log_dir="logs")
    assert "experiment.runner.log_dir" in reported
    assert "experiment.runner.tee" in reported
    assert "torchrun reads it" in reported


def test_all_mistakes_at_once() -> None:
    problems = VLLM.check(
        Task(type="serve", backend="vllm"),
        {"modle": "x", "models": {"a": {"dtpye": "float32"}, "b": {"port": "x"}}},
        SourceMap(),
    )
    assert len(problems) == 4  # the shared key is wrong for each of the two models


def test_wrong_names_and_values_do_not_hide_broken_rules() -> None:
    keys = {
        "model": "./absent",
        "tensor_paralel_size": 2,
        "max_model_len": "1.5K",
        "pipeline_parallel_size": 0,
    }
    found = VLLM.check(Task(type="serve", backend="vllm"), keys, SourceMap())
    assert {problem.where for problem in found} == {f"serve.{key}" for key in keys}
    assert len(found) == 4
