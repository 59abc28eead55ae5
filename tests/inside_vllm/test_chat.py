"""vLLM passes the parts of a message to our chat templates in their order."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.renderers import hf as renderer

from tests.worker.test_chat import CASES, chat, folders, opened

__all__ = ["folders"]


@pytest.mark.parametrize("name", CASES)
def test_vllm_passes_the_parts_of_messages_in_order(folders: Any, name: str) -> None:
    source = CASES[name][0]
    named = source if source == "vicuna" else None
    template = chat(opened(folders, None if named else source, begins=name == "trims"), named)
    assert renderer._detect_content_format(template.text, default="string") == "openai"
