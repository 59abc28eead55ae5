"""The files of a folder that hold its weights, as transformers and vLLM find them, in their own process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flagscale.checks.model_folder import UNTIED
from flagscale.checks.weight_files import LOAD_FORMATS, vllm_reads
from flagscale_testing.weights import LISTINGS
from tests.worker.test_vllm_plugin import pytestmark, python

pytestmark = [*pytestmark, pytest.mark.slow]

_PROGRAM = """if True:
    import json, os, sys
    from transformers import AutoConfig
    from transformers.modeling_utils import _get_resolved_checkpoint_files
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    def files(find):
        try:
            return sorted(map(os.path.basename, find()))
        except (OSError, RuntimeError):
            return []

    def found_by_vllm(folder, load_format):
        loader = DefaultModelLoader(LoadConfig(load_format=load_format))
        return files(lambda: loader._prepare_weights(folder, None, None, True, None)[1])

    folders, formats, types = json.loads(sys.argv[1])
    print(json.dumps({
        "transformers": {
            name: files(lambda: _get_resolved_checkpoint_files(folder, None, None, None, None, False)[0])
            for name, folder in folders.items()
        },
        "vllm": {
            name: {one: found_by_vllm(folder, one) for one in formats} for name, folder in folders.items()
        },
        "untied": [one for one in types if AutoConfig.for_model(one).tie_word_embeddings is False],
    }))
"""


def test_what_each_library_reads(tmp_path: Path) -> None:
    folders = {}
    for number, (name, case) in enumerate(LISTINGS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        for file in case.listing.names:
            (folder / file).touch()
        for index, files in case.listing.indexes.items():
            weight_map = {f"tensor{place}": file for place, file in enumerate(sorted(files))}
            (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        folders[name] = str(folder)
    types = sorted(set(UNTIED) - {"aquila"})
    given = json.dumps([folders, LOAD_FORMATS, types])
    assert json.loads(python("-c", _PROGRAM, given).splitlines()[-1]) == {
        "transformers": {name: sorted(case.transformers) for name, case in LISTINGS.items()},
        "vllm": {
            name: {one: sorted(vllm_reads(case.listing, one)) for one in LOAD_FORMATS}
            for name, case in LISTINGS.items()
        },
        "untied": types,
    }
