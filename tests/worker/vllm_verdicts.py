"""What vLLM itself says to values: one line of verdicts per line of questions, both JSON lists.

A question is [kind, ...]; its verdict is whether vLLM accepts. The kinds:

- ["argument", dest, value]: an engine, or a server, with this argument
- ["field", dest, value]: the class of this argument; null if it has no such field
- ["key", dest, path, value]: a value within an argument that is a mapping; `path` is a list of keys
- ["engine", {dest: value}]: an engine with several arguments
- ["server", {dest: value}]: a server with several arguments, as far as its own checks tell
- ["sampling", fields, {dest: value}]: a request to an engine with these arguments
- ["chats", fields]: requests of which none is a plain prompt

Three kinds have other answers:

- ["merged", fields, {dest: value}, generation configuration]: [temperature, repetition penalty, most tokens],
  of plain prompts and of chats
- ["ignored", [fields, ...]]: the messages about requests with these fields besides a prompt
- ["worker"]: the class of workers on CPU, the same if the user names one, and the requests with a generator
  while tokens are sampled, and afterwards; null on other devices
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # some values are names of models

import numpy as np
import vllm.config
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllm_flagscale.probes import engine_probe, model_folder, sampling_probe, server_probe, silent
from vllm_flagscale.sampling import Sampling, sampling_of
from vllm_flagscale.seeds import survive_seeds


class Judge:
    """Asks vLLM, with the folder of a small model."""

    def __init__(self, folder: str) -> None:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser

        self.folder = folder
        parser = make_arg_parser(FlexibleArgumentParser())
        self.defaults = parser.parse_args([])
        self.classes = {
            action.dest: getattr(vllm.config, str(group.title), None)
            for group in parser._action_groups
            for action in group._group_actions
        }
        self.adapters: dict[str, Any] = {}

    def argument(self, dest: str, value: Any) -> bool:
        known = dest in {field.name for field in dataclasses.fields(EngineArgs)}
        probe = engine_probe(dest, self.folder) if known else server_probe(dest, self.defaults)
        return probe(value)

    def field(self, dest: str, value: Any) -> bool | None:
        cls = self.classes.get(dest)
        if not dataclasses.is_dataclass(cls) or dest not in {one.name for one in dataclasses.fields(cls)}:
            return None
        return dest not in self._refused_keys(str(cls), cls, {dest: value})

    def key(self, dest: str, path: list[str], value: Any) -> bool:
        nested = value
        for name in reversed(path):
            nested = {name: nested}
        of_engine = {field.name: field.type for field in dataclasses.fields(VllmConfig)}
        of_class = {field.name: field.type for field in dataclasses.fields(self.classes[dest])}
        hint = of_engine.get(dest) or of_class[dest]
        refused = self._refused_keys(f"{dest} as a whole", hint, nested)
        return ".".join(path) not in refused

    def _refused_keys(self, name: str, hint: Any, value: Any) -> set[str]:
        adapter = self.adapters.setdefault(name, TypeAdapter(hint))
        try:
            adapter.validate_json(json.dumps(value))
        except ValidationError as error:
            places = [[str(part) for part in one["loc"]] for one in error.errors()]
            return {".".join(place[:length]) for place in places for length in range(1, len(place) + 1)}
        except Exception:
            return set()  # a rule between keys
        return set()

    def engine(self, keys: dict[str, Any]) -> bool:
        try:
            EngineArgs(model=self.folder, **keys).create_engine_config()
        except Exception:
            return False
        return True

    def server(self, keys: dict[str, Any]) -> bool:
        parsed = argparse.Namespace(**{**vars(self.defaults), **keys})
        return server_probe("model", parsed)(self.folder)

    def sampling(self, fields: dict[str, Any], keys: dict[str, Any]) -> bool:
        if "seed" in fields and not sampling_probe("seed")(fields["seed"]):
            return False
        try:
            self._sampling(fields, keys)
        except ValueError:
            return False
        return True

    def chats(self, fields: dict[str, Any]) -> bool:
        try:
            self._sampling(fields, {}, has_plain=False)
        except ValueError:
            return False
        return True

    def _sampling(self, fields: dict[str, Any], keys: dict[str, Any], has_plain: bool = True) -> Sampling:
        engine = EngineArgs(model=self.folder, **keys)
        structured = engine.create_structured_outputs_config()
        return sampling_of(fields, engine.create_model_config(), structured, has_plain=has_plain)

    def merged(self, fields: dict[str, Any], keys: dict[str, Any], generation: dict[str, Any]) -> list[Any]:
        file = Path(self.folder) / "generation_config.json"
        file.write_text(json.dumps(generation))
        found = self._sampling(fields, keys)
        file.unlink()
        return [
            [one.temperature, one.repetition_penalty, one.max_tokens] for one in (found.plain, found.chat)
        ]

    def ignored(self, requests: list[dict[str, Any]]) -> list[str]:
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest

        from vllm_flagscale.ignored_fields import LOGGER, report_ignored_fields

        said: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: said.append(f"{record.levelname}: {record.getMessage()}")
        logging.getLogger(LOGGER).addHandler(handler)
        report_ignored_fields()
        report_ignored_fields()
        silenced = logging.root.manager.disable
        logging.disable(logging.NOTSET)
        for fields in requests:
            CompletionRequest.model_validate({"prompt": "a", **fields})
        logging.disable(silenced)
        return said

    def worker(self) -> list[Any] | None:
        from vllm.platforms import current_platform

        if not current_platform.is_cpu():
            return None
        from vllm.v1.worker import cpu_worker

        from vllm_flagscale.cpu_sampling import SeededSampling

        chosen, named = argparse.Namespace(worker_cls="auto"), argparse.Namespace(worker_cls="own.Worker")
        for arguments in (chosen, named):
            survive_seeds(arguments)
        engine = EngineArgs(model=self.folder, worker_cls=chosen.worker_cls).create_engine_config()
        generators = {2: "generator", 3: "generator"}
        batch = SimpleNamespace(num_reqs=4, generators=generators)
        mask = SimpleNamespace(np=np.array([True, False, True, False, True]))
        worker = object.__new__(SeededSampling)
        worker.use_v2_model_runner = False
        worker.model_runner = SimpleNamespace(input_batch=batch, discard_request_mask=mask)
        cpu_worker.CPUWorker.sample_tokens = lambda self, output: sorted(generators)
        during = worker.sample_tokens(None)
        return [engine.parallel_config.worker_cls, named.worker_cls, during, sorted(generators)]


if __name__ == "__main__":
    with silent(), model_folder() as folder:
        Tokenizer(WordLevel({"a": 0}, "a")).save(f"{folder}/tokenizer.json")
        judge = Judge(folder)
        for line in sys.stdin:
            with contextlib.redirect_stdout(sys.stderr):
                verdicts = [getattr(judge, kind)(*rest) for kind, *rest in json.loads(line)]
            print(json.dumps(verdicts), flush=True)
