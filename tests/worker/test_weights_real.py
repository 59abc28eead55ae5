"""The files of a folder that hold its weights, as transformers and vLLM themselves find them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flagscale.checks.model_folder import _UNTIED
from flagscale.checks.weight_files import LOAD_FORMATS, vllm_reads
from flagscale_testing.weights import LISTINGS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", LISTINGS)
def test_the_files_that_each_library_reads(name: str, tmp_path: Path) -> None:
    from transformers.modeling_utils import _get_resolved_checkpoint_files
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    case = LISTINGS[name]
    for file in case.listing.names:
        (tmp_path / file).touch()
    for index, files in case.listing.indexes.items():
        weight_map = {f"tensor{number}": file for number, file in enumerate(sorted(files))}
        (tmp_path / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    try:
        found, _ = _get_resolved_checkpoint_files(str(tmp_path), None, None, None, None, False)
    except OSError:
        found = []
    assert sorted(map(os.path.basename, found)) == sorted(case.transformers)
    for load_format in LOAD_FORMATS:
        loader = DefaultModelLoader(LoadConfig(load_format=load_format))
        try:
            _, found, *_ = loader._prepare_weights(str(tmp_path), None, None, True, None)
        except RuntimeError:
            found = []
        assert {os.path.basename(file) for file in found} == vllm_reads(case.listing, load_format)


def test_model_types_that_are_not_tied_by_default() -> None:
    from transformers import AutoConfig

    for model_type in set(_UNTIED) - {"aquila"}:
        assert AutoConfig.for_model(model_type).tie_word_embeddings is False, model_type
