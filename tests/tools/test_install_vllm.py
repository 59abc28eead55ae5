"""The requirements of vLLM's CPU build that are installed beside Megatron's torch."""

from __future__ import annotations

from tools.install_vllm import needed


def test_torch_and_the_requirements_of_other_machines_are_left_out() -> None:
    asked = [
        "numpy",
        "fastapi[standard]<0.137.0,>=0.133.0",
        'torch==2.13.0+cpu; platform_machine == "x86_64"',
        "torchvision",
        'pandas; extra == "bench"',
        'six>=1.16.0; python_version > "3.11"',
        'protobuf==7.36.1; platform_machine == "no-machine"',
    ]
    assert needed(asked) == ["numpy", "fastapi[standard]<0.137.0,>=0.133.0", "six>=1.16.0"]
