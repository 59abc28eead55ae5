"""Model folders as lists of file names, with the files from which each library takes the weights."""

from __future__ import annotations

from dataclasses import dataclass

from flagscale.checks.weight_files import Listing

_WHOLE = "model.safetensors"
_BIN = "pytorch_model.bin"
_TWO = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_THREE = tuple(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
_BINS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
_MISTRAL, _ADAPTER = "consolidated.safetensors", "adapter_model.safetensors"
_VARIANT = "model.fp16.safetensors"


@dataclass(frozen=True)
class Case:
    """A listing, and what transformers 5.19 and vLLM 0.32 were seen to read of it."""

    listing: Listing
    transformers: tuple[str, ...]
    vllm: tuple[str, ...]


def _case(
    names: tuple[str, ...], transformers: tuple[str, ...], vllm: tuple[str, ...], **indexes: tuple[str, ...]
) -> Case:
    named = {f"{name.replace('_of_', '.')}.index.json": frozenset(found) for name, found in indexes.items()}
    return Case(Listing(frozenset({*names, *named}), named), transformers, vllm)


_SHARDED = {"model_of_safetensors": _TWO}
LISTINGS = {
    "whole": _case((_WHOLE,), (_WHOLE,), (_WHOLE,)),
    "sharded": _case(_TWO, _TWO, _TWO, **_SHARDED),
    "whole beside shards": _case((_WHOLE, *_TWO), (_WHOLE,), _TWO, **_SHARDED),
    "whole beside shards without an index": _case((_WHOLE, *_TWO), (_WHOLE,), (_WHOLE, *_TWO)),
    "an index that names the whole file": _case(
        (_WHOLE,), (_WHOLE,), (_WHOLE,), model_of_safetensors=(_WHOLE,)
    ),
    "an older sharding": _case((*_THREE, *_TWO), _TWO, _TWO, **_SHARDED),
    "an older sharding without an index": _case((*_THREE, *_TWO), (), (*_THREE, *_TWO)),
    "an adapter beside the whole file": _case((_WHOLE, _ADAPTER), (_WHOLE,), (_WHOLE, _ADAPTER)),
    "an adapter beside shards": _case((*_TWO, _ADAPTER), _TWO, _TWO, **_SHARDED),
    "a variant": _case((_WHOLE, _VARIANT), (_WHOLE,), (_WHOLE, _VARIANT)),
    "another name": _case(("weights.safetensors",), (), ("weights.safetensors",)),
    "Mistral's file beside the whole one": _case((_WHOLE, _MISTRAL), (_WHOLE,), (_MISTRAL,)),
    "Mistral's file beside shards": _case((*_TWO, _MISTRAL), _TWO, (_MISTRAL,), **_SHARDED),
    "Mistral's file": _case((_MISTRAL,), (), (_MISTRAL,)),
    "pickles beside the whole file": _case((_WHOLE, _BIN), (_WHOLE,), (_WHOLE,)),
    "pickles beside shards": _case((*_TWO, _BIN), _TWO, _TWO, **_SHARDED),
    "a pickle": _case((_BIN, "training_args.bin"), (_BIN,), (_BIN,)),
    "pickles": _case(_BINS, _BINS, _BINS, pytorch_model_of_bin=_BINS),
    "a whole pickle beside others": _case(
        (_BIN, *_BINS), (_BIN,), (_BIN, *_BINS), pytorch_model_of_bin=_BINS
    ),
    "nothing": _case((), (), ()),
}
