"""The sound projects that slips start from: our examples, without their data and chips."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

CONFIG, HOSTS = "conf/config.yaml", "hostfile"
_EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Project:
    """The files of a project, by path, and the words that follow the command's own."""

    name: str
    files: Mapping[str, bytes | str]
    """A text says what is in the place of a file: `folder`, `absent`, `unreadable`, `loop` or `fifo`."""
    words: tuple[str, ...] = ()

    def text(self, name: str) -> str:
        content = self.files[name]
        assert isinstance(content, bytes)
        return content.decode()

    def with_file(self, name: str, content: bytes | str) -> Project:
        return replace(self, files={**self.files, name: content})

    def with_words(self, words: Iterable[str]) -> Project:
        return replace(self, words=tuple(words))

    def write(self, folder: Path) -> None:
        """Write the files below a folder."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif content == "folder":
                path.mkdir()
            elif content == "unreadable":
                path.write_bytes(b"a: 1\n")
                path.chmod(0)
            elif content == "loop":
                path.symlink_to(path.name)
            elif content == "fifo":
                os.mkfifo(path)


def _project(
    name: str, config: str, *tasks: str, runner: str = "", model: str = "aquila", **hostfile: str
) -> Project:
    """Return an example as a project; `runner` is keys of its runner, which win over those of the example."""
    text = _example(model, config)
    for line in runner.splitlines():
        key = line.partition(":")[0]
        kept = [other for other in text.splitlines() if not other.startswith(f"    {key}:")]
        text = "\n".join([*kept, ""]).replace("\n  runner:\n", f"\n  runner:\n    {line}\n")
    texts = {CONFIG: text, **{f"conf/{task}.yaml": _example(model, task) for task in tasks}, **hostfile}
    return Project(name, {path: text.encode() for path, text in texts.items()})


_INSTEAD = {
    "train_data_path: [./data/demo/train_text_document]": "mock_data: true",
    "valid_data_path: [./data/demo/valid_text_document]": "reset_position_ids: false",
    "HuggingFaceTokenizer": "NullTokenizer",
    "tokenizer_model: ./data/demo/tokenizer": "vocab_size: 511",
    "./outputs/aquila_demo/hf": "facebook/opt-125m",
}
"""What the examples need that is not part of the repository, and what the projects have in its place."""


def _example(model: str, name: str) -> str:
    text = (_EXAMPLES / model / "conf" / f"{name}.yaml").read_text()
    for old, new in _INSTEAD.items():
        text = text.replace(old, new)
    return text


PROJECTS = [
    _project("train", "config", "train/demo", runner="platform: cpu"),
    _project("deepseek", "config", "train/demo", runner="platform: cpu", model="deepseek"),
    _project("hetero", "config_hetero", "train/demo_hetero", "train/demo", runner="platform: cpu"),
    _project("inference", "config_inference", "inference/demo"),
    _project("serve", "config_serve", "serve/demo", runner="platform: cpu"),
    _project(
        "hosts",
        "config",
        "train/demo",
        runner="platform: cpu\nhostfile: ./hostfile\nnnodes: 2\nnproc_per_node: 2",
        hostfile="# two hosts\nlocalhost slots=2 type=cpu\nother slots=2 type=cpu   # 2\n",
    ),
    _project("cloud", "config", "train/demo", runner="platform: cpu\ntype: cloud\nmaster_addr: 10.0.0.1"),
]
