"""Rotary positions are read as transformers and vLLM read them, or refused."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from flagscale.errors import UserError
from megatron.flagscale.convert.convert import convert
from megatron.flagscale.convert.hf_config import read_config
from tests.convert.public_configs import small

ROOT = Path(__file__).parents[2]


def effect(rope: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what rotary positions in the form of version 5 of transformers come to."""
    kind = rope["rope_type"]
    names = {"default": (), "linear": ("factor",)}.get(kind, ("factor", "original_max_position_embeddings"))
    known = {**rope}
    if kind == "yarn":
        names += ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")
        usual = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}
        known |= {name: rope.get(name) or value for name, value in usual.items()}
    return (kind, float(rope["rope_theta"]), *(known.get(name) for name in names))


_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_WHOLE = {**_LLAMA3, "original_max_position_embeddings": 8192}
_SCALINGS: tuple[dict[str, Any], ...] = (
    *({}, {"rope_scaling": None}, {"rope_scaling": {}}, {"rope_scaling": {"factor": 2.0}}),
    *({"rope_scaling": {"type": "linear", **more}} for more in ({"factor": 2.0, "rope_theta": 7000.0}, {})),
    *(
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "type": kind}}
        for kind in ("linear", "default")
    ),
    *({"rope_scaling": _LLAMA3}, {"rope_scaling": _WHOLE}, {"rope_scaling": "linear"}),
    {"rope_scaling": {"rope_type": None}},
)
_PARAMETERS: tuple[dict[str, Any], ...] = (
    *({}, {"rope_parameters": None}, {"rope_parameters": {"rope_theta": 9000.0}}),
    {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 9000.0}},
    *({"rope_parameters": {"type": "linear", "factor": 4.0}}, {"rope_parameters": {"rope_theta": None}}),
    *({"rope_parameters": "default"}, {"rope_parameters": _WHOLE}),
)
_BESIDE = tuple(
    {**one, **other}
    for one in ({}, {"rope_theta": 5000.0}, {"rope_theta": None})
    for other in ({}, {"original_max_position_embeddings": 8192})
)


_DYNAMIC = {"rope_type": "dynamic", "factor": 2.5}


def rotary_positions() -> Iterator[dict[str, Any]]:
    """Yield files with every combination of the keys of rotary positions."""
    for family, *parts in itertools.product(("llama", "mixtral"), _SCALINGS, _PARAMETERS, _BESIDE):
        yield {**small(family), **parts[0], **parts[1], **parts[2]}


def as_transformers(config: dict[str, Any]) -> Any:
    """Return the effect of rotary positions in transformers; None if it refuses the file."""
    from transformers import AutoConfig

    try:
        return effect(AutoConfig.for_model(**deepcopy(config)).rope_parameters)
    except Exception:
        return None


def as_here(config: dict[str, Any]) -> Any:
    try:
        rope = read_config(config, "config.json").rope
    except UserError:
        return None
    assert rope is not None
    kind = rope.scaling or "default"
    return kind, rope.theta, *{"default": (), "linear": (rope.factor,)}.get(kind, (rope.factor, 8192))


def test_rotary_positions_are_read_as_by_transformers() -> None:
    ours = [(config, found) for config in rotary_positions() if (found := as_here(config)) is not None]
    assert len(ours) > 300
    for config, found in ours:
        assert found == as_transformers(config), config


def test_dynamic_scaling_changes_nothing_in_sequences_that_megatron_trains() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    plain = small("llama")
    assert read_config({**plain, "rope_scaling": _DYNAMIC}, "one") == read_config(plain, "other")
    scaled = {**plain, "rope_parameters": {**_DYNAMIC, "rope_theta": 10000.0}}
    ours, theirs = (LlamaRotaryEmbedding(LlamaConfig(**one)) for one in (plain, scaled))
    last, longer = (torch.arange(4096 + more)[None] for more in (0, 1))
    hidden = torch.zeros(1)
    assert all(torch.equal(*pair) for pair in zip(ours(hidden, last), theirs(hidden, last), strict=True))
    assert not torch.equal(ours(hidden, longer)[0], theirs(hidden, longer)[0])


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "dynamic"}, "`factor` of the rotary positions is missing"),
        (
            {**_DYNAMIC, "alpha": 1000.0},
            "`alpha` of the rotary positions is 1000.0, which the kind 'dynamic'",
        ),
    ],
)
def test_dynamic_scaling_of_another_form_is_refused(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_config({**small("llama"), "rope_scaling": scaling}, "config.json")
    assert message in str(caught.value)


def test_dynamic_scaling_that_is_left_out_is_reported(
    copy: Callable[[str, str], Path], tmp_path: Path
) -> None:
    folder = copy("Qwen2, 2.5", "hf")
    config = json.loads((folder / "config.json").read_text())
    for scaling, is_left_out in ((_DYNAMIC, True), ({"type": "linear", "factor": 2.0}, False)):
        (folder / "config.json").write_text(json.dumps({**config, "rope_scaling": scaling}))
        notices = convert(folder, tmp_path / "megatron", overwrite=True).notices
        what = "the rotary scaling 'dynamic' is left out: it changes only sequences longer than 128 ("
        assert any(what in one for one in notices) == is_left_out


AS_VLLM = """
import sys
from copy import deepcopy
from transformers import AutoConfig
from vllm.transformers_utils.config import patch_rope_parameters
from tests.convert.test_hf_rope import effect, as_here, as_transformers, rotary_positions
wrong, seen = [], 0
for config in rotary_positions():
    found = as_here(config)
    try:
        theirs = AutoConfig.for_model(**deepcopy(config))
        patch_rope_parameters(theirs)
        expected = effect(theirs.rope_parameters)
    except Exception:
        expected = None
    seen += 1
    if found not in (None, expected) or (found is not None and expected != as_transformers(config)):
        wrong.append(config)
print(seen, wrong)
"""


@pytest.mark.slow
def test_rotary_positions_are_read_as_by_vllm() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_VLLM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == [f"{len([*rotary_positions()])} []"], done.stderr[-3000:]
