"""The lengths and precisions of vLLM's own configuration of a model, in its own process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flagscale.engines.vllm.lengths import default_length
from flagscale_testing import precisions
from flagscale_testing.lengths import CASES, LLAMA
from tests.unit.test_vllm_precision import write_codes
from tests.worker.test_vllm_plugin import pytestmark, python  # noqa: F401

_PROGRAM = """if True:
    import json, sys
    from vllm.config import ModelConfig
    from vllm.plugins import load_general_plugins
    load_general_plugins()

    def accepts(folder, wanted, arguments):
        try:
            ModelConfig(model=folder, skip_tokenizer_init=True, max_model_len=wanted, **arguments)
        except ValueError as error:
            if "derived max_model_len" not in str(error):
                raise
            return False
        return True

    cases = json.loads(sys.argv[1])
    print(json.dumps({
        name: [
            *(accepts(folder, wanted, arguments) for wanted in (longest, longest + 1)),
            ModelConfig(model=folder, skip_tokenizer_init=True, **arguments).max_model_len,
        ]
        for name, (folder, longest, arguments) in cases.items()
    }))
"""


@pytest.mark.slow
def test_the_longest_sequences_are_those_of_the_engine(tmp_path: Path) -> None:
    folders = {}
    for number, (name, case) in enumerate(CASES.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(case.config))
        for file, text in case.files.items():
            (folder / file).write_text(text)
        folders[name] = (str(folder), case.longest, dict(case.arguments))
    found = json.loads(python("-c", _PROGRAM, json.dumps(folders)).splitlines()[-1])
    assert {name: accepted for name, (*accepted, _) in found.items()} == {one: [True, False] for one in CASES}
    for name, (folder, _, arguments) in folders.items():
        ours = default_length({**arguments, "runner": "auto"}, CASES[name].config, Path(folder))
        assert ours in (None, found[name][-1]), name


_PRECISIONS = """if True:
    import json, sys
    from vllm.config import ModelConfig

    print(json.dumps({
        f"{name}: {dtype}": str(
            ModelConfig(model=folder, skip_tokenizer_init=True, runner=runner, dtype=dtype).dtype
        ).removeprefix("torch.")
        for name, (folder, runner, dtypes) in json.loads(sys.argv[1]).items()
        for dtype in dtypes
    }))
"""


@pytest.mark.slow
def test_the_precisions_are_those_of_the_engine(tmp_path: Path) -> None:
    folders, expected = {}, {}
    for number, (name, case) in enumerate(precisions.CASES.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**LLAMA, **case.config}))
        if case.codes:
            write_codes(folder / "model.safetensors", case.codes)
        dtypes = {"auto": case.auto, **case.others}
        folders[name] = (str(folder), case.runner, list(dtypes))
        expected |= {f"{name}: {dtype}": found for dtype, found in dtypes.items()}
    assert json.loads(python("-c", _PRECISIONS, json.dumps(folders)).splitlines()[-1]) == expected
