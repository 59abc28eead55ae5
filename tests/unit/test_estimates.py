"""`action=estimate` as a user runs it: text, JSON, picture, chips, messages, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from flagscale.cli import main

ROOT = Path(__file__).parents[2]
JOB = """
experiment:
  exp_name: large
  exp_dir: ./out
  task: {type: train, backend: megatron, entrypoint: megatron.flagscale.train_gpt}
  runner: {nproc_per_node: 8, platform: auto}
action: estimate
train:
  system: {bf16: true, use_distributed_optimizer: true, tensor_model_parallel_size: 2}
  model:
    num_layers: 8
    hidden_size: 1024
    ffn_hidden_size: 2816
    num_attention_heads: 16
    seq_length: 2048
    max_position_embeddings: 2048
    position_embedding_type: rope
    normalization: RMSNorm
    swiglu: true
    disable_bias_linear: true
    untie_embeddings_and_output_weights: true
    attention_dropout: 0.0
    hidden_dropout: 0.0
    micro_batch_size: 1
    global_batch_size: 32
    train_iters: 10
    lr: 1.0e-4
    save_interval: 5
  data: {mock_data: true, tokenizer_type: NullTokenizer, vocab_size: 32000}
"""
EXPERTS = (
    "train.num_experts=8",
    "train.moe_router_topk=2",
    "train.moe_ffn_hidden_size=512",
    "train.system.sequence_parallel=true",
    "train.expert_model_parallel_size=2",
)
LATENT = (
    "train.multi_latent_attention=true",
    "train.q_lora_rank=256",
    "train.kv_lora_rank=128",
    "train.qk_head_dim=64",
    "train.qk_pos_emb_head_dim=32",
    "train.v_head_dim=64",
)
MESHES = (
    "train.hetero_process_meshes=[{type:H100,tp:2,dp:2,layers:[5]},{type:Ascend910B,tp:2,dp:2,layers:[3]}]",
    "train.system.tensor_model_parallel_size=1",
    "experiment.runner.hostfile=hosts",
    "experiment.runner.nproc_per_node=4",
)
PIPELINE = ("train.pipeline_model_parallel_size=2",)
Estimate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Estimate:
    """Run a command on the job above and return its exit code, its output, and its messages."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "job.yaml").write_text(JOB)
    (tmp_path / "hosts").write_text("a slots=4 type=H100\nb slots=4 type=Ascend910B\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(*words: str, chip: str = "H100") -> tuple[int, str, str]:
        named = [f"chip={chip}"] if chip else []
        code = main(["--config-path", "conf", "--config-name", "job", *named, *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def tree_of(estimate: Estimate, *words: str, chip: str = "H100") -> dict[str, Any]:
    code, out, err = estimate("output=json", *words, chip=chip)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("train.group_query_attention=true", "train.num_query_groups=4"),
        LATENT,
        EXPERTS,
        (*LATENT, *EXPERTS, "train.mtp_num_layers=1"),
        (*PIPELINE, "train.num_virtual_stages_per_pipeline_rank=2"),
        ("train.context_parallel_size=2",),
        ("train.recompute_granularity=selective", "train.recompute_modules=[core_attn,mlp]"),
        (
            *PIPELINE,
            "train.recompute_granularity=full",
            "train.recompute_method=uniform",
            "train.recompute_num_layers=1",
            "train.recompute_granularity_per_stage_micro_batch=[[1,16,1],[1,16,0]]",
            "train.recompute_method_per_stage_micro_batch=[[1,16,0],[1,16,0]]",
            "train.recompute_num_layers_per_stage_micro_batch=[[1,16,1],[1,16,1]]",
        ),
    ],
    ids=("dense", "gqa", "mla", "experts", "deepseek", "interleaved", "context", "selective", "schedule"),
)
def test_a_job_is_estimated(estimate: Estimate, words: tuple[str, ...]) -> None:
    tree = tree_of(estimate, *words)
    assert tree["fits"]
    assert all(one["surely_fits"] and one["chip"] == "H100" for one in tree["stages"])
    assert 0 < tree["step"]["seconds_low"] < tree["step"]["seconds_high"]
    assert tree["step"]["tokens"] == 32 * 2048
    assert sum(term["bytes"] for term in tree["stages"][0]["terms"]) == tree["stages"][0]["device_bytes"]


def test_the_text_has_a_table_the_split_of_a_step_and_what_limits(estimate: Estimate) -> None:
    code, out, err = estimate(*PIPELINE)
    assert (code, err) == (0, "")
    assert out.startswith("large: 8 ranks, tp2 x pp2 x dp2, 8 x H100\n\nmemory of one rank, GiB\n")
    assert re.search(r"^  stage +0 +1$", out, re.MULTILINE)
    for name in ("parameters", "allocated", "reserved", "on the device", "at most, 95 %", "fits"):
        assert re.search(rf"^ +{re.escape(name)} +\S+ +\S+$", out, re.MULTILINE), name
    assert re.search(
        r"^one step of 65.5k tokens: [0-9.]+ m?s \([0-9.]+ m?s to [0-9.]+ m?s with 95 %\)$", out, re.MULTILINE
    )
    for name in ("compute", "communication", "bubble", "optimizer"):
        assert re.search(rf"^  {name} +[0-9.]+ (s|ms|us) +<?[0-9.]+ %$", out, re.MULTILINE), name
    assert re.search(r"tokens/s, .* per device; .* TFLOP/s per device, MFU [0-9.]+ %", out)
    assert re.search(r"^limit: \w+ [0-9.]+ % of the step; then", out, re.MULTILINE)


@pytest.fixture
def example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return what a command prints for an example; by default its estimate on H100."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)

    def example(name: str, *words: str) -> str:
        where = ["--config-path", "./examples/aquila/conf", "--config-name", name]
        assert main([*where, *(words or ("action=estimate", "chip=H100"))]) == 0
        return capsys.readouterr().out

    return example


def test_an_example_has_the_golden_estimate(example: Callable[..., str]) -> None:
    """`UPDATE_GOLDEN=1` rewrites it; the constants and the error table of the planner change it."""
    golden, text = ROOT / "tests" / "golden" / "estimate_aquila_7b.txt", example("config_7b")
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        *(("aquila", f"config{kind}") for kind in ("", "_3b", "_34b", "_hetero", "_auto_tuner", "_mixed")),
        ("deepseek", "config"),
    ],
)
def test_every_example_of_a_training_can_be_estimated(
    folder: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    words = ["action=estimate", "chip=H100", "++train.padded_vocab_size=64000", "output=json"]
    code = main(["--config-path", f"./examples/{folder}/conf", "--config-name", name, *words])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert json.loads(out)["step"]


def test_the_docs_show_a_real_estimate(example: Callable[..., str]) -> None:
    """`UPDATE_GOLDEN=1` rewrites it."""
    lines = (
        textwrap.fill(line, 116, subsequent_indent=" " * 6) for line in example("config_70b").splitlines()
    )
    require_in_docs("estimate", "\n".join(lines))


def test_the_docs_show_the_line_of_a_dryrun_and_a_real_picture(
    example: Callable[..., str], tmp_path: Path
) -> None:
    """`UPDATE_GOLDEN=1` rewrites both."""
    of_mixed = example("config_mixed", "action=dryrun")
    require_in_docs("dryrun", next(line for line in of_mixed.splitlines() if "memory: " in line).strip())
    shown, drawn = ROOT / "docs" / "estimate.svg", tmp_path / "drawn.svg"
    example("config_mixed", "action=estimate", f"picture={drawn}")
    if os.environ.get("UPDATE_GOLDEN"):
        shown.write_bytes(drawn.read_bytes())
    assert drawn.read_bytes() == shown.read_bytes()


def require_in_docs(name: str, text: str) -> None:
    """Assert that the page of the planner shows a text as the example of this name."""
    block = textwrap.indent(text, " " * 4)
    page = ROOT / "docs" / "planner.md"
    begin, end = f"<!-- example: {name} -->\n\n", "\n\n<!-- end -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    shown, _, after = rest.partition(end)
    if os.environ.get("UPDATE_GOLDEN"):
        page.write_text(f"{before}{begin}{block}{end}{after}", encoding="utf-8")
        shown = block
    assert shown == block


def test_stages_that_are_alike_share_a_column(estimate: Estimate) -> None:
    _, out, _ = estimate(
        "train.pipeline_model_parallel_size=4",
        "train.recompute_granularity=full",
        "train.recompute_method=uniform",
        "train.recompute_num_layers=1",
        "train.system.tensor_model_parallel_size=1",
    )
    assert re.search(r"^  stage +0( +\d+(-\d+)?)+$", out, re.MULTILINE)


def test_the_names_of_the_json_are_those_of_the_docs(estimate: Estimate) -> None:
    tree = tree_of(estimate)
    page = (ROOT / "docs" / "planner.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(\w+)`", page.partition("## Estimate")[2].partition("\n## ")[0]))
    names = {*tree, *tree["stages"][0], *tree["stages"][0]["terms"][0], *tree["step"]}
    assert names <= documented, names - documented


def test_meshes_of_chips_that_nobody_has_installed(estimate: Estimate) -> None:
    tree = tree_of(estimate, *MESHES, chip="")
    assert [(one["mesh"], one["chip"], one["layers"]) for one in tree["stages"]] == [
        (0, "H100", [5]),
        (1, "Ascend910B", [3]),
    ]
    assert tree["stages"][1]["chip_bytes"] == 60.32 * 2**30
    code, out, _ = estimate(*MESHES, chip="")
    assert code == 0
    assert out.startswith("large: 8 ranks, tp2 x dp2 | tp2 x dp2, 4 x H100 | 4 x Ascend910B\n")


def test_one_chip_for_all_hosts(estimate: Estimate) -> None:
    assert {one["chip"] for one in tree_of(estimate, *MESHES, chip="b200")["stages"]} == {"B200"}


def test_a_chip_for_all_hosts_is_noted_where_the_hostfile_names_others(estimate: Estimate) -> None:
    note = "note: all hosts are estimated as H100 (chip=), not by type=Ascend910B of the hostfile\n"
    assert note in estimate(*MESHES, chip="h100")[2]
    assert "note: all hosts are estimated" not in estimate(*MESHES, chip="")[2]
    assert "note: all hosts are estimated" not in estimate(chip="B200")[2]
    assert note in estimate(*MESHES[2:], "plan=auto", chip="H100")[2]


def test_a_sweep_compares_chips(estimate: Estimate) -> None:
    code, out, err = estimate("--multirun", "chip=H100,B200", "output=json", chip="")
    assert code == 0, err
    assert [json.loads(line)["stages"][0]["chip"] for line in out.splitlines()] == ["H100", "B200"]


def test_hosts_need_not_exist(estimate: Estimate) -> None:
    tree = tree_of(estimate, "experiment.runner.nnodes=64", "train.model.global_batch_size=256")
    assert (tree["ranks"], tree["stages"][0]["ranks"]) == (512, 512)
    assert tree["step"]["communication_s"] > 0


@pytest.mark.parametrize(
    ("platform", "chip"), [("H100", ""), ("A100-40", ""), ("ascend910b", ""), ("auto", "MI300X")]
)
def test_the_platform_may_name_the_chip(estimate: Estimate, platform: str, chip: str) -> None:
    tree = tree_of(estimate, f"experiment.runner.platform={platform}", chip=chip)
    assert tree["stages"][0]["chip"].lower() == (chip or platform).lower()


def test_a_short_name_is_enough_if_one_chip_has_it(estimate: Estimate) -> None:
    assert tree_of(estimate, chip="a800")["stages"][0]["chip"] == "A800-80"


def test_a_file_of_chips_adds_some_and_gives_other_names(estimate: Estimate) -> None:
    entry = {
        "bf16_tflops_dense": 200,
        "memory_gb": 48,
        "hbm_gb_s": 1000,
        "intra_node": {"gb_s": 100, "world": 8},
    }
    Path("chips.json").write_text(
        json.dumps({"Mine": entry, "nvidia": "H200", "cpu": {**entry, "memory_gb": 7}})
    )
    words = ("experiment.chips=chips.json",)
    assert tree_of(estimate, *words, chip="mine")["stages"][0]["chip_bytes"] == 48 * 2**30
    tree = tree_of(estimate, *words, "experiment.runner.platform=nvidia", chip="")
    assert tree["stages"][0]["chip"] == "H200"
    Path("chips.json").write_text(
        json.dumps({"cpu": {**entry, "memory_gb": 7, "intra_node": {"gb_s": 9, "world": 2}}})
    )
    tree = tree_of(estimate, *words, chip="")
    assert tree["stages"][0]["chip_bytes"] == 7 * 2**30
    assert tree["step"], "the ranks on a processor are all on one node"


def test_without_a_figure_of_a_link_the_memory_is_there_and_the_figure_is_named(estimate: Estimate) -> None:
    tree = tree_of(
        estimate, "experiment.runner.nnodes=2", "train.system.bf16=null", "train.fp16=true", chip="T4"
    )
    assert tree["step"] is None
    assert tree["stages"][0]["device_bytes"] > 0
    (missing,) = tree["missing"]
    assert missing == "the bandwidth of the links of chip `T4` between nodes is not known"


@pytest.mark.parametrize(
    ("words", "chip", "says"),
    [
        ((), "H10", "chip: unknown chip `H10`\n    did you mean `H100`?"),
        ((), "A100", "chip: `A100` may be A100-80 or A100-40"),
        (
            (),
            "",
            "no figures of `cpu` are known: every machine has its own\n    `python tools/profile_chip.py ",
        ),
        (
            ("experiment.runner.platform=nvidia",),
            "",
            "the platform `nvidia` has chips of many kinds\n    give chip=",
        ),
        ((*MESHES, "experiment.chips=nowhere.json"), "", "nowhere.json: the file cannot be read"),
        (("experiment.task.entrypoint=mine.py",), "H100", "the model of `mine.py` is unknown"),
        (("train.hybrid_layer_pattern=M*M*",), "H100", "hybrid_layer_pattern"),
        (("plan=best",), "H100", "the only value is auto"),
        (("output=xml", "picture=x.png"), "H100", "2 mistakes"),
        (("train.num_layer=3",), "H100", "did you mean `num_layers`?"),
        (("picture=mine.py/x.svg",), "H100", "mine.py/x.svg cannot be written: "),
    ],
)
def test_a_mistake_is_a_message_and_exit_code_2(
    estimate: Estimate, words: tuple[str, ...], chip: str, says: str
) -> None:
    Path("mine.py").write_text("from megatron.flagscale.program import run\nrun(forward_step=step)\n")
    code, out, err = estimate(*words, chip=chip)
    assert code == 2
    assert out == ""
    assert says in err
    assert "Traceback" not in err


def test_what_the_planner_does_not_know_is_no_mistake_and_names_its_key(estimate: Estimate) -> None:
    again = "train.recompute_granularity=selective"
    code, out, err = estimate("train.transformer_impl=torch", "train.system.bf16=false", again)
    assert (code, out) == (2, "")
    assert err.startswith("cannot estimate: command line: train.recompute_granularity: ")
    assert "mistake" not in err
    code, _, err = estimate("experiment.task={type:serve,backend:vllm}")
    assert (code, err.partition(":")[0]) == (2, "cannot estimate")


def test_a_soft_cap_of_attention_deserves_a_note(estimate: Estimate) -> None:
    model = ("train.transformer_impl=torch", "train.attention_dropout=0")
    _, plain, _ = estimate(*model)
    _, capped, _ = estimate(*model, "train.attn_logit_softcapping=50")
    note = "the scores that they hold meanwhile are not estimated"
    assert note in capped
    assert note not in plain


def test_a_misspelt_chip_is_recognized_whatever_its_case(estimate: Estimate) -> None:
    code, _, err = estimate(chip="h10")
    assert code == 2
    assert "did you mean `H100`?" in err


def test_steps_of_the_last_size_of_a_schedule_are_estimated(estimate: Estimate) -> None:
    plain = tree_of(estimate, "train.model.global_batch_size=32")
    grows = ("train.model.global_batch_size=null", "train.step_batch_size_schedule='0:8 1M:32'")
    length = ("train.model.train_iters=null", "train.train_samples=80")
    code, out, err = estimate("output=json", *grows, *length)
    assert code == 0, err
    assert json.loads(out) == plain
    assert "steps of the last size are estimated: 32" in err


def test_data_and_tokenizer_need_not_be_here(estimate: Estimate) -> None:
    data = ("train.data.mock_data=null", "train.data.data_path=[nowhere]")
    code, out, err = estimate(*data)
    assert code == 0, err
    assert err == "note: not on this machine, and not needed for an estimate: the files of data_path\n"
    plain = estimate()[1]
    assert out == plain
    tokenizer = (
        "train.data.tokenizer_type=HuggingFaceTokenizer",
        "train.data.tokenizer_model=./no_where",
        "train.data.vocab_size=null",
    )
    code, _, err = estimate(*data, *tokenizer)
    assert code == 2
    assert "for an estimate, add train.padded_vocab_size=N" in err
    code, out, err = estimate(*data, *tokenizer, "train.padded_vocab_size=32000")
    assert (code, out) == (0, plain), err
    code, _, err = estimate(*data, *tokenizer, "train.num_layer=3")
    assert code == 2
    assert "did you mean `num_layers`?" in err


def test_conversations_need_not_be_here(estimate: Estimate) -> None:
    layers = ("train.transformer_impl=torch", "train.calculate_per_token_loss=true")
    tuning = (
        *("experiment.task.entrypoint=megatron.flagscale.train_gpt_sft", "train.no_packing=true"),
        *("train.data.mock_data=null", "train.data.train_data_path=[nowhere_text_document]"),
    )
    plain = estimate(*layers)[1]
    code, out, err = estimate(*layers, *tuning)
    assert (code, out) == (0, plain), err
    assert "not needed for an estimate: the files of train_data_path" in err


def test_jobs_of_other_engines_are_refused_whatever_their_mistakes(estimate: Estimate) -> None:
    code, _, err = estimate("experiment.task={type:serve,backend:vllm}", "serve.model=nowhere")
    assert code == 2
    assert "experiment.task.backend: jobs of `vllm` are not estimated, only trainings with megatron" in err


def test_a_training_of_adapters_is_not_estimated_as_one_of_all_weights(estimate: Estimate) -> None:
    of_adapters = ("train.lora_rank=8", "train.transformer_impl=torch", "train.pretrained_checkpoint=base")
    code, _, err = estimate(*of_adapters)
    assert code == 2
    assert "trainings of adapters (`lora_rank`) are not estimated: frozen weights are not modelled" in err


def test_an_ordinary_job_on_chips_of_two_kinds(estimate: Estimate) -> None:
    code, _, err = estimate(*MESHES[2:], chip="")
    assert code == 2
    assert "mesh 0 has chips of several kinds (H100, Ascend910B)" in err


@pytest.mark.parametrize(
    "words", [PIPELINE, MESHES, (*PIPELINE, "train.num_virtual_stages_per_pipeline_rank=2")]
)
def test_the_picture_is_a_file_by_itself(estimate: Estimate, words: tuple[str, ...]) -> None:
    code, _, err = estimate(*words, "picture=made/here.svg", "experiment.exp_name='<&>'")
    assert code == 0, err
    assert [path.name for path in Path("made").iterdir()] == ["here.svg"]
    text = Path("made/here.svg").read_text()
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    assert "prefers-color-scheme: dark" in text
    assert "href" not in text
    assert not [one for one in root.iter() if one.tag == f"{space}script"]
    labels = [one.text for one in root.iter(f"{space}text")]
    assert "<&>" in labels
    assert {"stage 0", "stage 1"} <= set(labels)
    boxes = [
        {name: float(one.get(name, "0")) for name in ("x", "width")} for one in root.iter(f"{space}rect")
    ]
    assert all(
        box["width"] >= 0 and 0 <= box["x"] <= 960 and box["x"] + box["width"] <= 960.01 for box in boxes
    )
    work = {"forward": 0, "backward": 0}
    for one in root.iter(f"{space}path"):
        work[str(one.get("class"))] += str(one.get("d")).count("M")
    assert work["forward"] == work["backward"] > 0


def test_dryrun_adds_a_line_if_the_chip_is_known(estimate: Estimate) -> None:
    code, out, err = estimate("action=dryrun", "experiment.runner.platform=H100", chip="")
    assert code == 0, err
    assert re.search(
        r"^  memory: [0-9.]+ GiB of 79.1 GiB \(H100\), at most [0-9.]+ with 95 %; [0-9.]+ m?s per step$",
        out,
        re.MULTILINE,
    )
    assert "warning" not in out
    code, out, _ = estimate("action=dryrun", "experiment.runner.platform=nvidia", chip="")
    assert code == 0
    assert "memory:" not in out


def test_dryrun_warns_if_the_memory_may_not_suffice_and_refuses_nothing(estimate: Estimate) -> None:
    more = ("train.model.num_layers=200", "experiment.runner.platform=nvidia")
    code, out, err = estimate("action=dryrun", *more, chip="T4")
    assert code == 0, err
    assert re.search(r"^  warning: stage 0 does not fit: up to [0-9.]+ GiB with 95 %", out, re.MULTILINE)


@pytest.mark.parametrize("more", [("train.hybrid_layer_pattern=M*M*",), ("experiment.chips=nowhere.json",)])
def test_dryrun_goes_on_without_an_estimate(estimate: Estimate, more: tuple[str, ...]) -> None:
    Path("mine.py").write_text("from megatron.flagscale.program import run\nrun(forward_step=step)\n")
    program = ("experiment.task.entrypoint=mine.py",) if "hybrid" in more[0] else ()
    code, out, err = estimate("action=dryrun", *more, *program, "experiment.runner.platform=H100", chip="")
    assert code == 0, err
    assert ("memory: not estimated" in out) == (not program)


def test_check_says_how_to_get_an_estimate(estimate: Estimate) -> None:
    small = ("experiment.runner.nproc_per_node=2", "train.system.bf16=null")
    _, out, _ = estimate("action=check", *small, chip="")
    assert "ok      configuration  memory: not estimated: no figures of `cpu` are known" in out
    _, out, _ = estimate("action=check", *small, "train.model.num_layers=200", chip="T4")
    assert "ok      configuration  memory: " in out
    assert "warn    configuration  stage 0 does not fit: " in out


def test_an_estimate_imports_no_engine_and_no_numpy(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    words = ["--config-path", str(tmp_path), "--config-name", "job", "chip=H100", "picture=p.svg"]
    listed = "[m for m in ('torch', 'numpy', 'megatron.core', 'vllm') if m in sys.modules]"
    code = f"import sys; from flagscale.cli import main; main({words}); print({listed})"
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.rstrip().endswith("[]")
