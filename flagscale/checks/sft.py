"""Rules of instruction tuning: between the arguments of `megatron.flagscale.train_gpt_sft`, and for its data.

They apply to a program that has the arguments of `megatron.flagscale.sft.arguments`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flagscale.checks.blend import blends, named_files
from flagscale.checks.experts import OTHER_BALANCE, balance_of
from flagscale.checks.hetero.keys import MESHES
from flagscale.checks.indexed import lengths, problems
from flagscale.checks.loss_masks import mask_problem, remote_violations
from flagscale.checks.mask_files import NO_PACKING, SEPARATE, TEXT, has_masks, mask_prefix
from flagscale.checks.packing import sequences_of
from flagscale.errors import Violation

PROGRAM = "megatron.flagscale.train_gpt_sft"
_MASKS = "the masks beside the data say which tokens are learnt"
_LENGTHS = "the lengths of conversations are read at each start"
REFUSED: Mapping[str, tuple[Any, str]] = {
    "mock_data": (False, "give pairs that tools/datasets/chat.py has made"),
    "eod_mask_loss": (False, _MASKS),
    SEPARATE: (False, f"{_MASKS}, always"),
    "allow_ambiguous_pad_tokens": (False, "padding is not found by its id"),
    "dataloader_fast_cache_load": (False, _LENGTHS),
    "dataloader_defer_npy_index_mmap": (False, _LENGTHS),
    "mtp_num_layers": (None, "prediction heads would read across conversations"),
    "hetero_layout": (None, "unequal meshes are not supported with conversations"),
}
"""By dest: the value that has no effect, and why any other value is refused."""
_OF_PACKING = ("reset_position_ids", "reset_attention_mask")


def is_instruction_tuning(values: Mapping[str, Any]) -> bool:
    """Return whether arguments (by dest) are those of an instruction tuning."""
    return NO_PACKING in values


def sft_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the rules between the arguments (by dest) of an instruction tuning that they break."""
    for name, (off, why) in REFUSED.items():
        if (value := values.get(name)) and value != off:
            shown = MESHES if name == "hetero_layout" else name
            yield name, f"`{shown}` cannot be used with `{PROGRAM}`: {why}; remove it"
    if not values.get("calculate_per_token_loss"):
        what = "`calculate_per_token_loss: true` is required: samples differ in the number of learnt tokens"
        yield "calculate_per_token_loss", f"{what}, and each of these tokens has to count the same"
    if (layers := values.get("transformer_impl")) != "torch":
        what = f"`transformer_impl: {layers}` is not supported with `{PROGRAM}`"
        yield "transformer_impl", f"{what}; use `torch`, whose attention keeps conversations apart"
    if (loader := values.get("dataloader_type")) not in (None, "single"):
        what = f"`dataloader_type: {loader}` cannot be used with `{PROGRAM}`"
        yield "dataloader_type", f"{what}: samples come in another order in each epoch anyway; remove it"
    if values.get("num_experts") and (balance := balance_of(values)) in OTHER_BALANCE:
        what = f"`moe_router_load_balancing_type: {balance}` cannot be used with `{PROGRAM}`"
        yield "moe_router_load_balancing_type", f"{what}: it counts padding; use a loss, or `none`"
    for name in _OF_PACKING:
        if values.get(NO_PACKING) and values.get(name):
            yield name, f"`{name}` has no effect with `{NO_PACKING}`: a sample has one document; remove it"


def conversation_violations(values: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield what is wrong with the pairs of conversations that arguments (by dest) name."""
    yield from remote_violations(values, cwd)
    limit = values.get("seq_length")
    shorter = "tools/datasets/chat.py --longest"
    for name, prefix in named_files(values, cwd):
        if problems(prefix):
            continue  # reported already
        masks = mask_prefix(prefix)
        if masks is None:
            what = f"{prefix}: not the prefix of conversations: its name does not end with `{TEXT}`"
            yield name, f"{what}; tools/datasets/chat.py makes such pairs"
        elif not has_masks(prefix):
            what = f"{masks}.bin, {masks}.idx: no such files, which say what of {prefix} is learnt"
            yield name, f"{what}; make both pairs with tools/datasets/chat.py"
        elif what := mask_problem(prefix):
            yield name, what
        elif isinstance(limit, int) and (longer := [one for one in lengths(prefix) if one > limit]):
            what = f"{prefix}: conversations longer than seq_length {limit}: {len(longer):,} of"
            what = f"{what} {len(lengths(prefix)):,}; the longest has {max(longer):,} tokens"
            yield name, f"{what}: set `seq_length: {max(longer)}`, or leave them out (`{shorter} {limit}`)"


def conversation_remarks(values: Mapping[str, Any], cwd: Path = Path()) -> Iterator[Violation]:
    """Yield how many samples and steps the conversations for the training are, as far as they are here."""
    limit, batch = values.get("seq_length") or 0, values.get("global_batch_size")
    for blend in blends(values, cwd) if limit else ():
        for prefix in blend.files(cwd) if blend.split == "train" else ():
            sizes = [] if problems(prefix) else lengths(prefix)[slice(*blend.sequences(prefix))]
            if not sum(sizes) or max(sizes) > limit:
                continue
            samples = samples_of(sizes, values)
            fill = sum(sizes) / (samples * limit)
            chats = f"{len(sizes):,} {'conversation makes' if len(sizes) == 1 else 'conversations make'}"
            what = (
                f"{prefix}: {chats} {samples:,} {'sample' if samples == 1 else 'samples'} of {limit} tokens"
            )
            steps = f"; steps in one pass: {-(-samples // batch):,}" if batch else ""
            yield blend.argument, f"{what}, {fill:.1%} full{steps}"


def samples_of(sizes: Sequence[int], values: Mapping[str, Any]) -> int:
    """Return how many samples conversations of these lengths fill; none is longer than a sample."""
    counts = Counter(sizes)
    del counts[0]
    return counts.total() if values[NO_PACKING] else sequences_of(counts, int(values["seq_length"]))
