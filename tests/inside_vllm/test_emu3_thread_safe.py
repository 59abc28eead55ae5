"""The decoder's matrix products while the engine steps in another thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.linear import ReplicatedLinear

from vllm_flagscale.emu3.thread_safe import use_torch

PRODUCTS = 20_000


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Parameters ask for their rank, and there is no group in this process.
    monkeypatch.setattr("vllm.model_executor.parameter.get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr("vllm.model_executor.parameter.get_tensor_model_parallel_world_size", lambda: 1)
    with set_current_vllm_config(VllmConfig()):
        yield


def layer(
    inputs: int, outputs: int, dtype: torch.dtype = torch.float32
) -> tuple[ReplicatedLinear, list[torch.Tensor]]:
    """Return a layer as a loaded model has it, and its weight and bias."""
    made = ReplicatedLinear(inputs, outputs, params_dtype=dtype, disable_tp=True, return_bias=False)
    parameters = [torch.randn(outputs, inputs).to(dtype), torch.randn(outputs).to(dtype)]
    for parameter, values in zip((made.weight, made.bias), parameters, strict=True):
        parameter.data.copy_(values)
    made.quant_method.process_weights_after_loading(made)
    return made, parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_are_those_that_were_loaded(dtype: torch.dtype) -> None:
    made, (weight, bias) = layer(64, 96, dtype)
    with torch.inference_mode():
        use_torch(made)
        inputs = torch.randn(5, 64).to(dtype)
        assert torch.equal(made(inputs), torch.nn.functional.linear(inputs, weight, bias))
    assert torch.equal(made.weight, weight)


def test_products_of_two_threads_do_not_change_each_other() -> None:
    decoder, (weight, bias) = layer(64, 64)
    step, (step_weight, step_bias) = layer(256, 768)
    use_torch(decoder)
    tokens, codes = torch.randn(17, 256), torch.randn(48, 64)
    wrong: list[str] = []
    is_done = threading.Event()

    def engine() -> None:
        expected = tokens @ step_weight.T + step_bias
        while not is_done.is_set():
            if not torch.allclose(step(tokens), expected, atol=1e-3):
                wrong.append("the step")

    thread = threading.Thread(target=engine)
    with torch.inference_mode():
        expected = codes @ weight.T + bias
        thread.start()
        try:
            for _ in range(PRODUCTS):
                if not torch.allclose(decoder(codes), expected, atol=1e-3):
                    wrong.append("the picture")
        finally:
            is_done.set()
            thread.join()
    assert wrong == []
