"""The chat template of Emu3 begins with BOS, whoever wrote it."""

from __future__ import annotations

from flagscale.checks.emu3_vocabulary import CHAT_TEMPLATE
from vllm_flagscale.emu3.prompts import chat_template


def test_a_template_begins_with_bos() -> None:
    assert chat_template(None) == chat_template("") == "{{ bos_token }}" + CHAT_TEMPLATE
    assert chat_template("{{ messages }}") == "{{ bos_token }}{{ messages }}"
    assert chat_template(chat_template("{{ messages }}")) == "{{ bos_token }}{{ messages }}"
    assert chat_template("<|extra_203|>{{ messages }}") == "<|extra_203|>{{ messages }}"
