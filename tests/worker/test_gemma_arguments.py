"""The arguments of Gemma's layers reach the engine's configuration, and the layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flagscale.checks.gemma import SETTINGS
from megatron.flagscale.layers.gemma_arguments import set_gemma_layers
from megatron.flagscale.layers.window_rotary import window_base


def configured(precision: torch.dtype = torch.float32, **given: Any) -> Any:
    """Return the configuration of a model with these arguments; `hooks` are those of the whole model."""
    transformer = SimpleNamespace(hidden_size=3072, params_dtype=precision, use_mup=False)
    model = SimpleNamespace(transformer=transformer, pre_wrap_hooks=[])
    set_gemma_layers(model, SimpleNamespace(**{**dict.fromkeys(SETTINGS), "scale_embedding": False, **given}))
    transformer.hooks = model.pre_wrap_hooks
    return transformer


def test_nothing_is_set_without_them() -> None:
    before = {"hidden_size": 3072, "params_dtype": torch.float32, "use_mup": False}
    unset = {"attn_logit_softcapping": None, "window_rotary_base": None, "hooks": []}
    assert vars(configured()) == before | unset


@pytest.mark.parametrize(("precision", "scale"), [(torch.float32, 3072**0.5), (torch.bfloat16, 55.5)])
def test_embeddings_are_scaled_as_in_transformers(precision: torch.dtype, scale: float) -> None:
    found = configured(precision, scale_embedding=True)
    assert found.use_mup
    assert found.mup_embedding_mult == pytest.approx(scale, rel=1e-7)


def test_scores_caps_and_the_gate() -> None:
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    found = configured(query_pre_attn_scalar=144, glu_activation="gelu_tanh", **caps)
    assert found.softmax_scale == 1 / 12
    assert found.attn_logit_softcapping == 50.0
    values = torch.linspace(-3, 3, 7)
    assert torch.equal(found.activation_func(values), F.gelu(values, approximate="tanh"))
    assert not torch.equal(found.activation_func(values), F.gelu(values))
    assert not found.bias_activation_fusion
    (hook,) = found.hooks
    (chunk,) = hook([SimpleNamespace()])
    assert chunk._scale_logits(torch.tensor(1e6)) == 30


def test_only_layers_with_a_window_have_a_base_of_their_own() -> None:
    config = SimpleNamespace(window_size=(9, 0), window_attn_skip_freq=3, window_rotary_base=1e4)
    assert [window_base(config, layer) for layer in range(1, 7)] == [1e4, 1e4, None] * 2
    config.window_attn_skip_freq = None
    assert window_base(config, 3) == 1e4
    config.window_rotary_base = None
    assert window_base(config, 3) is None
