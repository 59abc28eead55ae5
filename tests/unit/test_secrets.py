"""Secrets are recognized by their names and masked wherever a configuration is shown."""

from __future__ import annotations

import pytest

from flagscale.config.catalog import Catalog
from flagscale.config.secrets import MASK, is_secret, masked

SECRET = """
WANDB_API_KEY wandb-api-key HF_TOKEN AWS_SECRET_ACCESS_KEY PASSWORD token db_passwd GOOGLE_CREDENTIALS
"""
PLAIN = "tokenizer_type KEYBOARD consumed_tokens key_size PATH fim_eod_token image_token"


@pytest.mark.parametrize("name", SECRET.split())
def test_secret_names(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", PLAIN.split())
def test_plain_names(name: str) -> None:
    assert not is_secret(name)


def test_no_value_of_the_engine_is_mistaken_for_a_secret(catalog: Catalog) -> None:
    assert [
        name for name, option in catalog.options.items() if is_secret(name) and option.kind == "value"
    ] == []


def test_secrets_are_masked_at_any_depth_and_of_any_type() -> None:
    tree = {
        "envs": {"HF_TOKEN": "hf_123", "OTHER": "seen", "EMPTY_KEY": ""},
        "list": [{"api_key": 42}, "seen"],
        "keys_key": ["a", "b"],
        "no_token": None,
    }
    assert masked(tree) == {
        "envs": {"HF_TOKEN": MASK, "OTHER": "seen", "EMPTY_KEY": ""},
        "list": [{"api_key": MASK}, "seen"],
        "keys_key": [MASK, MASK],
        "no_token": None,
    }
    assert tree["envs"]["HF_TOKEN"] == "hf_123", "the configuration itself is not changed"
