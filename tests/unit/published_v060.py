"""The 18 combinations of files that FlagScale v0.6.0 published, reduced to their keys and values.

Left out are keys that are arguments of the engine as before and raise no message, unless a plan needs them.
`fixes` are what the messages of one dryrun ask for: the new value of each key, `None` for a key to remove.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Tree = dict[str, Any]


@dataclass(frozen=True)
class Combination:
    """One experiment file with one of the task files that it can name."""

    name: str
    task_file: str
    experiment: Tree
    task: Tree
    fixes: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    group: str = "train"
    action: str = "run"


def _experiment(program: str, *, kind: str = "train", backend: str = "megatron", **more: Any) -> Tree:
    devices = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7", "CUDA_DEVICE_MAX_CONNECTIONS": 1}
    task = {"type": kind, "backend": backend, "entrypoint": program}
    return {"exp_name": "published", "exp_dir": "./outputs", "task": task, "envs": devices, **more}


_AQUILA, _LLAMA = "./flagscale/train/train_aquila.py", "./flagscale/train/train_llama.py"
_ONE_HOST = {"backend": "torchrun", "nnodes": 1, "nproc_per_node": 8}
_FOUR_HOSTS = {"backend": "torchrun", "nnodes": 4, "nproc_per_node": 8, "hostfile": "${hostfile??}"}
_CLOUD = {
    "type": "cloud",
    "rdzv_id": "demo",
    "nnodes": "${env:WORLD_SIZE}",
    "node_rank": "${env:RANK}",
    "nproc_per_node": 8,
    "master_addr": "${env:MASTER_ADDR}",
    "master_port": 12345,
}
_SPACE = {"space": {"micro_batch_size": "auto"}, "control": {"max_time": 600}}


def _system(tp: int, pp: int, **more: Any) -> Tree:
    return {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "disable_bias_linear": True,
        "sequence_parallel": True,
        "use_distributed_optimizer": True,
        "use_flash_attn": True,
        "precision": {"bf16": True, "attention_softmax_in_fp32": True},
        "logging": {"log_interval": 1},
        "checkpoint": {"save_interval": 1000},
        **more,
    }


def _model(layers: int, hidden: int, heads: int, length: int, batch: int, **more: Any) -> Tree:
    return {
        "num_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "seq_length": length,
        "max_position_embeddings": length,
        "use_rotary_position_embeddings": True,
        "swiglu": True,
        "no_position_embedding": True,
        "normalization": "RMSNorm",
        "norm_epsilon": 1e-5,
        "untie_embeddings_and_output_weights": True,
        "micro_batch_size": 1,
        "global_batch_size": batch,
        **more,
    }


_SCHEDULE = {"lr": 1.5e-4, "min_lr": 1.5e-5, "lr_warmup_samples": 500, "lr_decay_style": "cosine"}
_TWICE = {"lr": 2e-4, "weight_decay": 0.01, "lr_scheduler": _SCHEDULE}
_DATA = "${data_path:??}"
_TOKENIZER = {"tokenizer_type": None, "tokenizer_path": None, "special_tokens_file": None}
_DEMO_MODEL = _model(
    *(12, 4096, 32, 2048, 32),
    multiple_of=256,
    rotary_interleaved_patch=True,
    weight_decay=0.1,
    train_samples=100000,
    optimizer=_TWICE,
)
_DEMO = {
    "system": _system(2, 2),
    "model": _DEMO_MODEL,
    "data": {"data_path": _DATA, "split": 1, "tokenizer": _TOKENIZER},
}
_HETERO = {
    "enable_hetero": True,
    "hetero_pipeline_layer_split": [6, 2, 4],
    "hetero_process_meshes": [2, 1, 1, 1, 1, 4, 1, 1, 1, 1, 2, 1, 1, 1, 1],
    "hetero_device_types": ["A800"] * 3,
    "standalone_embedding_stage": False,
    "hetero_current_device_type": "A800",
}
_RECOMPUTE = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
    "recompute_granularity_per_stage_micro_batch": [[1, 30, 0, 2, 0], [1, 30, 1, 2, 1], [1, 30, 1, 2, 1]],
    "recompute_method_per_stage_micro_batch": [[1, 30, 0, 2, 0], [1, 30, 0, 2, 0], [1, 30, 1, 2, 1]],
    "recompute_num_layers_per_stage_micro_batch": [[1, 30, 2, 2, 2], [1, 30, 1, 2, 1], [1, 30, 2, 2, 2]],
}
_DEMO_HETERO = {
    "system": _system(2, 3, use_mcore_models=True, hetero=_HETERO, recompute=_RECOMPUTE),
    "model": _DEMO_MODEL,
    "data": {
        "data_path": "xxxx",
        "split": 1,
        "tokenizer": {**_TOKENIZER, "tokenizer_type": "xxxx", "tokenizer_path": "xxxx", "vocab_size": "xxxx"},
    },
}


def _aquila(tp: int, pp: int, model: Tree, **system: Any) -> Tree:
    folder = "./examples/aquila/tokenizer"
    tokenizer = {
        "tokenizer_type": "AquilaTokenizerFS",
        "vocab_file": f"{folder}/vocab.json",
        "merge_file": f"{folder}/merges.txt",
        "special_tokens_file": f"{folder}/special_tokens.txt",
        "vocab_size": 100008,
    }
    data = {"data_path": _DATA, "split": 1, "tokenizer": tokenizer}
    return {"system": {**_system(tp, pp), **system}, "model": model, "data": data}


def _large(layers: int, hidden: int, heads: int, batch: int, **more: Any) -> Tree:
    return _model(
        *(layers, hidden, heads, 4096, batch),
        group_query_attention=True,
        num_query_groups=8,
        hidden_dim_multiplier=1.3,
        multiple_of=4096,
        train_samples=488281250,
        eval_iters=0,
        eval_interval=2000,
        optimizer={"weight_decay": 0.1, "lr_scheduler": {**_SCHEDULE, "lr_warmup_samples": 500000}},
        **more,
    )


_SAVED_AT_RAMP = {"save_interval": 1000, "rampup_save_interval": 5000}
_AQUILA_7B = _aquila(
    *(1, 1),
    _model(
        *(32, 4096, 32, 2048, 1728),
        micro_batch_size=2,
        multiple_of=256,
        rotary_interleaved_patch=True,
        eval_iters=0,
        weight_decay=0.1,
        train_samples=1002539063,
        optimizer={"weight_decay": 0.1, "lr_scheduler": _SCHEDULE},
    ),
    sequence_parallel=False,
    precision={"fp16": True, "initial_loss_scale": 522893, "min_loss_scale": 1.0},
)
_AQUILA_34B = _aquila(
    *(4, 4),
    _large(60, 6144, 48, 1024, norm_init_weight=0.3, rampup_batch_size=[32, 32, 2000000]),
    checkpoint=_SAVED_AT_RAMP,
)
_AQUILA_70B = _aquila(
    *(8, 4),
    _large(
        *(80, 8192, 64, 1056),
        micro_batch_size=2,
        norm_init_weight=0.25,
        rampup_batch_size=[48, 48, 2000000],
    ),
    checkpoint=_SAVED_AT_RAMP,
)
_LLAMA3_70B = {
    "system": _system(8, 4, use_mcore_models=True, checkpoint={"ckpt_format": "torch", "save_interval": 100}),
    "model": _model(
        *(80, 8192, 64, 8192, 1024),
        group_query_attention=True,
        num_query_groups=8,
        ffn_hidden_size=28672,
        norm_init_weight=0.02,
        rotary_base=500000,
        reset_position_ids=True,
        reset_attention_mask=True,
        add_qkv_bias=False,
        train_samples=6160066,
        optimizer={
            "start_weight_decay": 1.5e-6,
            "end_weight_decay": 1.5e-5,
            "weight_decay_incr_style": "cosine",
            "lr_scheduler": {**_SCHEDULE, "lr_warmup_samples": 2048000},
        },
    ),
    "data": {
        "data_path": _DATA,
        "split": 1,
        "tokenizer": {
            "tokenizer_type": "Llama3TokenizerFS",
            "tokenizer_path": "${tokenizer_path:??}",
            "vocab_size": 128256,
        },
    },
}
_LLAMA3_70B_FINETUNE = {
    **_LLAMA3_70B,
    "system": {
        **_LLAMA3_70B["system"],
        "checkpoint": {
            "load": "${ckpt_path:??}",
            "ckpt_format": "torch",
            "save_interval": 100,
            "finetune": True,
        },
    },
}
_LLAMA3_8B = {
    "system": _system(
        4, 2, checkpoint={"load": "outputs_llama3/checkpoint_mc", "save_interval": 10, "finetune": True}
    ),
    "model": _model(
        *(32, 4096, 32, 4096, 2048),
        use_mcore_models=True,
        ffn_hidden_size=14336,
        group_query_attention=True,
        num_query_groups=8,
        rotary_interleaved_patch=False,
        position_embedding_type="rope",
        train_samples=200000,
        eval_iters=100,
        eval_interval=1000,
        optimizer={"lr_scheduler": {"lr": 1e-5, "min_lr": 1e-6, "lr_warmup_fraction": 0.1}},
    ),
    "data": {
        "data_path": "examples/llama/pile-openwebtext_text_document/pile-openwebtext_text_document",
        "split": 1,
        "tokenizer": {
            "tokenizer_type": "Llama3TokenizerFS",
            "tokenizer_path": "meta-llama3/Meta-Llama-3-8B",
            "vocab_size": 128256,
        },
    },
}


def _llama2(system: Tree, length: int, batch: int, **more: Any) -> Tree:
    model = _model(
        *(32, 4096, 32, length, batch),
        use_mcore_models=True,
        group_query_attention=False,
        num_query_groups=8,
        weight_decay=0.1,
        train_iters=30,
        optimizer={
            "weight_decay": 1e-2,
            "lr_scheduler": {"lr": 1.5e-4, "min_lr": 1e-5, "lr_warmup_fraction": 0.01, "lr_decay_iters": 1},
        },
        **more,
    )
    tokenizer = {"tokenizer_type": "Llama2Tokenizer", "tokenizer_model": "examples/llama/tokenizer.model"}
    data = {"data_path": _DATA, "split": 1, "tokenizer": {**tokenizer, "vocab_size": 32000}}
    return {"system": system, "model": model, "data": data}


_LLAMA2_7B = _llama2(
    _system(1, 1, precision={"fp16": True, "initial_loss_scale": 16384, "min_loss_scale": 1.0}),
    *(2048, 1024),
    ffn_hidden_size=28672,
    multiple_of=256,
    rotary_interleaved_patch=True,
)
_LLAMA2_7B_HETERO = _llama2(
    _system(
        *(4, 3),
        hetero_mode="pp",
        hetero_device_types="A100",
        hetero_current_device_type="A100",
        hetero_pipeline_stages=[3, 16, 8, 8],
        process_meshes=[4, 1, 1, 2, 1, 2],
    ),
    *(4096, 32),
    ffn_hidden_size=11008,
)
_MIXTRAL = {
    "system": _system(2, 4, expert_model_parallel_size=4, use_mcore_models=True),
    "model": _model(
        *(32, 4096, 32, 4096, 2048),
        ffn_hidden_size=14336,
        group_query_attention=True,
        num_query_groups=8,
        num_experts=8,
        moe_router_load_balancing_type="aux_loss",
        moe_router_topk=2,
        moe_aux_loss_coeff=0.02,
        train_iters=1000,
        eval_interval=1000,
        eval_iters=10,
        no_masked_softmax_fusion=True,
        optimizer={"lr": 1e-4, "weight_decay": 0.1, "lr_scheduler": {"lr_warmup_iters": 500}},
    ),
    "data": {
        "data_path": "<xxxx>",
        "split": 1,
        "tokenizer": {"tokenizer_type": "QwenTokenizerFS", "tokenizer_path": "<xxxx>"},
    },
}


def _pictures(pretrained: str, model: Tree, data: Tree, **system: Any) -> Tree:
    """Return a task file for pictures: what the two published ones have in common, and their own keys."""
    checkpoint = {
        "save_interval": 1000,
        "pretrained_checkpoint": pretrained,
        "dataloader_save": "${experiment.exp_dir}/checkpoints/dataloader",
        "use_dist_ckpt": False,
        "ckpt_format": "torch",
        "async_save": False,
    }
    return {
        "system": {
            "tensor_model_parallel_size": 1,
            "pipeline_model_parallel_size": 1,
            "disable_bias_linear": True,
            "use_flash_attn": True,
            "use_distributed_optimizer": True,
            "use_mcore_models": True,
            "transformer_impl": "transformer_engine",
            **system,
            "precision": {"bf16": True, "attention_softmax_in_fp32": True},
            "logging": {"log_interval": 1, "log_params_norm": True, "log_num_zeros_in_grad": True},
            "checkpoint": checkpoint,
        },
        "model": {
            "micro_batch_size": 2,
            "allow_missing_vision_projection_checkpoint": True,
            "apply_layernorm_1p": True,
            "group_query_attention": True,
            "no_masked_softmax_fusion": True,
            "swiglu": True,
            "normalization": "RMSNorm",
            "position_embedding_type": "rope",
            "eod_mask_loss": True,
            "patch_dim": 14,
            "disable_vision_class_token": True,
            **model,
            "optimizer": {"lr_scheduler": {"lr": 1.0e-3, "lr_warmup_fraction": 0.03}},
        },
        "data": {"dataloader_type": "external", "split": "100,0,0", **data},
    }


_LLAVA = _pictures(
    "${pretrained_checkpoint_path:??}",
    {
        "num_layers": 32,
        "hidden_size": 4096,
        "ffn_hidden_size": 11008,
        "num_attention_heads": 32,
        "seq_length": 2048,
        "max_position_embeddings": 4096,
        "train_iters": 5000,
        "eval_iters": 10,
        "eval_interval": 1000,
        "global_batch_size": 256,
        "use_te": True,
        "num_query_groups": 32,
        "untie-embeddings-and-output-weights": True,
        "freeze_LM": True,
        "freeze_ViT": True,
        "img_h": 336,
        "img_w": 336,
        "language_model_type": "vicuna_7b",
    },
    {
        "data_path": "./examples/multimodal/pretrain_dataset.yaml",
        "valid_path": "./examples/multimodal/pretrain_dataset.yaml",
        "prompt-path": "./examples/multimodal/manual_prompts.json",
        "tokenizer": {
            "tokenizer_type": "Llama2Tokenizer",
            "tokenizer_model": "${tokenizer_model_path:??}",
            "vocab_size": 32000,
        },
    },
)
_LLAVA_ONEVISION = _pictures(
    "xxxx",
    {
        "num_layers": 28,
        "hidden_size": 1536,
        "ffn_hidden_size": 8960,
        "num_attention_heads": 12,
        "num_query_groups": 2,
        "seq_length": 12288,
        "max_position_embeddings": 12288,
        "train_iters": 10,
        "eval_iters": 0,
        "global_batch_size": 512,
        "untie-embeddings-and-output-weights": False,
        "freeze_LM": False,
        "freeze_ViT": False,
        "img_h": 384,
        "img_w": 384,
        "language_model_type": "qwen2_1.5b",
        "vision_model_type": "siglip",
        "mm_patch_merge_type": "flat",
    },
    {
        "interleaved_dataset": True,
        "training_dataset_only": True,
        "data_path": "xxxx",
        "tokenizer": {
            "tokenizer_type": "Qwen2TokenizerFS",
            "tokenizer_path": "xxxx",
            "vocab_size": 151936,
            "make_vocab_size_divisible_by": 64,
        },
    },
    use_te=True,
    recompute_granularity="full",
    recompute_method="uniform",
    recompute_num_layers=1,
)
_INFERENCE = {
    "llm": {
        "model": "BAAI/Aquila-7B",
        "tokenizer": "BAAI/Aquila-7B",
        "trust_remote_code": True,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "gpu_memory_utilization": 0.9,
    },
    "generate": {"prompts": ["Once"], "sampling": {"top_p": 0.95, "temperature": 0.8}},
}


def _emu3(model: str, **generate: Any) -> Tree:
    needed = {
        "vq_model": "BAAI/Emu3-VisionTokenizer/",
        "skip_tokenizer_init": True,
        "trust_remote_code": True,
    }
    return {"llm": {"model": model, **needed}, "generate": {"prompts": ["a", "b"], **generate}}


_OFFLINE = {"runner": {"hostfile": None}, "cmds": {"before_start": "source activate flagscale"}}
_DATA_FIX = {"train.data.data_path": "./data"}
_TOKENIZER_FIX = {"train.data.tokenizer.tokenizer_path": "./tokenizer"}
_DEMO_FIXES = {
    **_DATA_FIX,
    "train.data.tokenizer.tokenizer_type": "HuggingFaceTokenizer",
    "train.data.tokenizer.tokenizer_path": "./tokenizer",
    "train.model.weight_decay": None,
    "train.model.optimizer.lr": None,
}
_AQUILA_FIXES = {
    **_DATA_FIX,
    "train.data.tokenizer.vocab_file": "./tokenizer/vocab.json",
    "train.data.tokenizer.merge_file": "./tokenizer/merges.txt",
    "train.data.tokenizer.special_tokens_file": "./tokenizer/special_tokens.txt",
}
_MORE_HOSTS = {"experiment.runner.nnodes": 4, "experiment.runner.hostfile": "./hosts"}
_HOSTS = {"experiment.runner.hostfile": "./hosts"}
_LLAMA2_FIXES = {
    **_DATA_FIX,
    "train.model.weight_decay": None,
    "train.model.num_query_groups": None,
    "train.data.tokenizer.tokenizer_model": "./tokenizer/llama2.model",
}

COMBINATIONS = (
    Combination("aquila", "demo", _experiment(_AQUILA, runner=_ONE_HOST), _DEMO, _DEMO_FIXES),
    Combination(
        "aquila", "train_aquila_7b", _experiment(_AQUILA, runner=_ONE_HOST), _AQUILA_7B, _AQUILA_FIXES
    ),
    Combination(
        *("aquila", "train_aquila_34b", _experiment(_AQUILA, runner=_ONE_HOST), _AQUILA_34B),
        {**_AQUILA_FIXES, **_MORE_HOSTS},
    ),
    Combination(
        *("aquila", "train_aquila_70b", _experiment(_AQUILA, runner=_ONE_HOST), _AQUILA_70B),
        {**_AQUILA_FIXES, **_MORE_HOSTS},
    ),
    Combination(
        *("aquila_jiuding", "demo", _experiment(_AQUILA, runner=_CLOUD), _DEMO),
        {
            **_DEMO_FIXES,
            "experiment.runner.nnodes": "${oc.env:WORLD_SIZE}",
            "experiment.runner.node_rank": "${oc.env:RANK}",
            "experiment.runner.master_addr": "${oc.env:MASTER_ADDR}",
        },
        environment={"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "10.0.0.1"},
    ),
    Combination(
        *("aquila_auto_tuner", "demo", _experiment(_AQUILA, runner=_ONE_HOST, auto_tuner=_SPACE), _DEMO),
        _DEMO_FIXES,
        action="auto_tune",
    ),
    Combination(
        "aquila_hetero",
        "demo_hetero",
        _experiment(_AQUILA, runner={"hostfile": "torchrun", "rdzv_backend": "static"}),
        _DEMO_HETERO,
        {
            **_DEMO_FIXES,
            "train.data.tokenizer.vocab_size": None,
            "experiment.runner.hostfile": "./hosts_A800",
        },
    ),
    Combination(
        "aquila_inference",
        "inference_aquila_7b",
        _experiment("flagscale/inference/inference_aquila.py", kind="inference", backend="vllm", **_OFFLINE),
        _INFERENCE,
        group="inference",
    ),
    Combination(
        "emu_chat",
        "inference_emu3_i2t",
        _experiment("flagscale/inference/inference_emu3.py", kind="inference", backend="vllm", **_OFFLINE),
        _emu3(
            "BAAI/Emu3-Chat",
            mode="U",
            images=["demo.png", "demo.png"],
            sampling={"temperature": 0.0, "max_tokens": 1024, "detokenize": False},
        ),
        {"inference.llm.model": "BAAI/Emu3-Chat-hf"},
        group="inference",
    ),
    Combination(
        "emu_gen",
        "inference_emu3_t2i",
        _experiment("flagscale/inference/inference_emu3.py", kind="inference", backend="vllm", **_OFFLINE),
        _emu3(
            "BAAI/Emu3-Gen",
            mode="G",
            ratios=["1:1", "16:9"],
            sampling={"top_k": 2048, "max_tokens": 40960, "guidance_scale": 3.0, "detokenize": False},
        ),
        {"inference.llm.model": "BAAI/Emu3-Gen-hf"},
        group="inference",
    ),
    Combination(
        *("llama", "train_llama3_70b", _experiment(_LLAMA, runner=_FOUR_HOSTS), _LLAMA3_70B),
        {**_HOSTS, **_DATA_FIX, **_TOKENIZER_FIX},
    ),
    Combination(
        *(
            "llama",
            "train_llama3_70b_finetune",
            _experiment(_LLAMA, runner=_FOUR_HOSTS),
            _LLAMA3_70B_FINETUNE,
        ),
        {**_HOSTS, **_DATA_FIX, **_TOKENIZER_FIX, "train.system.checkpoint.load": "./checkpoints"},
    ),
    Combination(
        *("llama", "train_llama3_8b", _experiment(_LLAMA, runner=_FOUR_HOSTS), _LLAMA3_8B),
        {**_HOSTS, **_DATA_FIX},
    ),
    Combination(
        *("llama", "train_llama2_7b", _experiment(_LLAMA, runner=_FOUR_HOSTS), _LLAMA2_7B),
        {**_HOSTS, **_LLAMA2_FIXES},
    ),
    Combination(
        "llama_hetero",
        "train_llama2_7b_tp_hetero",
        _experiment(
            "./flagscale/train/hetero/train_llama.py",
            runner={"backend": "torchrun", "nnodes": 1, "nproc_per_node": 8, "hostfile": "hostfile"},
        ),
        _LLAMA2_7B_HETERO,
        {
            **_LLAMA2_FIXES,
            "experiment.runner.hostfile": "./hosts_A100",
            "train.system.hetero_mode": None,
            "train.system.hetero_pipeline_stages": None,
            "train.system.process_meshes": None,
            "train.system.enable_hetero": True,
            "train.system.hetero_process_meshes": [4, 1, 1, 1, 1, 2, 1, 1, 1, 2],
            "train.system.hetero_pipeline_layer_split": [16, 8, 8],
            "train.system.hetero_device_types": ["A100", "A100"],
        },
    ),
    Combination(
        "llava",
        "train_llava1.5_7b.yaml",
        _experiment("./flagscale/train/train_llava.py", runner={**_FOUR_HOSTS, "hostfile": "<xxx>"}),
        _LLAVA,
        {
            **_HOSTS,
            "train.system.checkpoint.pretrained_checkpoint": "./checkpoints",
            "train.data.prompt-path": None,
            "train.data.data_path": "./pictures",
            "train.data.valid_path": "./pictures",
            "train.data.tokenizer.tokenizer_type": "HuggingFaceTokenizer",
            "train.data.tokenizer.tokenizer_model": "./chat",
        },
    ),
    Combination(
        "llava_onevision",
        "train_llava_onevision_1.5b.yaml",
        _experiment(
            "./flagscale/train/train_llava_onevision.py", runner={"backend": "torchrun", "nnodes": 1}
        ),
        _LLAVA_ONEVISION,
        {
            "train.data.data_path": "./pictures",
            "train.data.tokenizer.tokenizer_path": "./chat",
            "train.system.transformer_impl": None,
            "train.system.checkpoint.pretrained_checkpoint": "./checkpoints",
        },
    ),
    Combination(
        "mixtral",
        "train_mixtral_8x7b",
        _experiment(
            "flagscale/train/train_mixtral.py ", runner={"backend": "torchrun", "hostfile": "<xxxx>"}
        ),
        _MIXTRAL,
        {**_HOSTS, **_DATA_FIX, **_TOKENIZER_FIX},
    ),
)
