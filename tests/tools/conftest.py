"""Fixtures for the tests of the tools: a tokenizer that is trained once, odd paths, and running a tool."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # `tools` is not an installed package

from flagscale_testing.chat_templates import write_chat_tokenizer  # noqa: E402
from flagscale_testing.chats import CHATML  # noqa: E402
from tools.datasets import train_tokenizer  # noqa: E402
from tools.datasets.documents import open_source  # noqa: E402

TOKENIZER_TEXT = "def answer(question: str) -> int:\n    return 42  # naïve, 数\n" * 50


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer with 300 tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text(TOKENIZER_TEXT)
    train_tokenizer.train(open_source(folder / "text.txt"), folder / "tokenizer", vocabulary=300)
    return folder / "tokenizer"


@pytest.fixture(scope="session")
def chat_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer with the chat template `CHATML`."""
    return write_chat_tokenizer(tmp_path_factory.mktemp("chat") / "tokenizer", CHATML)


@pytest.fixture(
    params=["plain", "two words", 'it\'s "quoted"', "$(touch x) `y` $HOME", "数据 é", "new\nline", "a.b.idx"]
)
def weird_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder whose name breaks code that pastes it into a string."""
    path = tmp_path / request.param
    path.mkdir()
    return path


@pytest.fixture
def tool(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs `tools/<name>.py` as a user does, from another folder and without a network."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
        return subprocess.run(command, cwd=tmp_path, env=offline, capture_output=True, text=True, check=False)

    return run
