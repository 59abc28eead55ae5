"""The sound projects that slips start from: our examples, made so small that they need nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

CONFIG, HOSTS = "conf/config.yaml", "hostfile"
EXAMPLE = Path(__file__).parents[2] / "examples" / "aquila" / "conf"


@dataclass(frozen=True)
class Project:
    """The files of a project, by path, and the words that follow the command's own."""

    name: str
    files: Mapping[str, bytes | str]
    """A text says that something else is in the file's place: a folder, nothing, ..."""
    words: tuple[str, ...] = ()

    def text(self, name: str) -> str:
        content = self.files[name]
        assert isinstance(content, bytes)
        return content.decode()

    def with_file(self, name: str, content: bytes | str) -> Project:
        return replace(self, files={**self.files, name: content})

    def with_words(self, words: Sequence[str]) -> Project:
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


def _project(name: str, config: str, *tasks: str, add: str = "", **files: str) -> Project:
    texts = {CONFIG: _example(f"{config}.yaml").replace("\n  runner:\n", f"\n  runner:\n{add}")}
    texts |= {f"conf/{task}.yaml": _example(f"{task}.yaml") for task in tasks}
    return Project(name, {path: text.encode() for path, text in (texts | files).items()})


def _example(name: str) -> str:
    text = (EXAMPLE / name).read_text()
    # The data and the model of the demo, which are not part of the repository.
    for path in ("[./data/demo/train_text_document]", "[./data/demo/valid_text_document]"):
        text = text.replace(f"train_data_path: {path}", "mock_data: true").replace(
            f"valid_data_path: {path}", "no_mmap_bin_files: true"
        )
    text = text.replace("HuggingFaceTokenizer", "NullTokenizer").replace(
        "tokenizer_model: ./data/demo/tokenizer", "vocab_size: 511"
    )
    return text.replace("./outputs/aquila_demo/hf", "facebook/opt-125m")


_CPU = "    platform: cpu\n"
_HOSTFILE = "# two hosts\nlocalhost slots=2 type=cpu\nother slots=2 type=cpu   # 2\n"

PROJECTS = [
    _project("train", "config", "train/demo", add=_CPU),
    _project("hetero", "config_hetero", "train/demo_hetero", "train/demo", add=_CPU),
    _project("inference", "config_inference", "inference/demo"),
    _project("serve", "config_serve", "serve/demo", add=_CPU),
    _project("hosts", "config", "train/demo", add=f"{_CPU}    hostfile: ./hostfile\n", hostfile=_HOSTFILE),
    _project("cloud", "config", "train/demo", add=f"{_CPU}    node_rank: 0\n    master_addr: 10.0.0.1\n"),
]
PROJECTS[-1] = PROJECTS[-1].with_file(
    CONFIG, PROJECTS[-1].text(CONFIG).replace("type: ssh", "type: cloud").encode()
)
PROJECTS[-2] = PROJECTS[-2].with_file(
    CONFIG,
    PROJECTS[-2]
    .text(CONFIG)
    .replace("nnodes: 1", "nnodes: 2")
    .replace("nproc_per_node: 4", "nproc_per_node: 2")
    .encode(),
)
