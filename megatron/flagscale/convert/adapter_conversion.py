"""Convert adapters between the checkpoints of a training and folders of PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flagscale.errors import Problem, UserError
from megatron.flagscale.convert import adapter_checkpoint, peft_folder
from megatron.flagscale.convert.adapters import Adapter
from megatron.flagscale.convert.checkpoints import find_checkpoint, reader_of
from megatron.flagscale.convert.convert import HUGGINGFACE, MEGATRON, format_of
from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.files import complete_folder, read_json
from megatron.flagscale.convert.hf_pictures import read_config
from megatron.flagscale.convert.huggingface import CONFIG
from megatron.flagscale.convert.megatron_args import checkpoint_arguments
from megatron.flagscale.convert.megatron_model import model_of
from megatron.flagscale.convert.model import Model


@dataclass(frozen=True)
class ConvertedAdapter:
    """The result of a conversion; `bytes` is the size of its tensors."""

    target: Path
    adapter: Adapter
    bytes: int
    notices: tuple[str, ...] = ()


def export_adapter(
    load: Path, save: Path, *, base: Path | None = None, iteration: int | None = None, overwrite: bool = False
) -> ConvertedAdapter:
    """Write the adapter in a folder of checkpoints to a new folder of PEFT.

    `base` is the folder of the base in Hugging Face's format, or a checkpoint of it: the adapter is compared
    with it, and the first is recorded as the base.

    Raises:
        UserError: the adapter cannot be exported; lists all reasons. Nothing is written.
    """
    model = model_in(base) if base else None
    is_checkpoint = base is not None and format_of(base) == MEGATRON
    checkpoint = find_checkpoint(base) if base and is_checkpoint else None
    adapter = adapter_checkpoint.open_checkpoint(load, model, iteration, checkpoint)
    merge = "merge it: tools/checkpoint/adapter.py merge"
    if adapter.model.vision:
        what = "adapters of models with pictures cannot be exported"
        raise UserError([Problem(what, str(load), merge)])
    of_experts = {one.kind for one in adapter.projections if one.entry.expert is not None}
    if of_experts and registry.load(adapter.model.family).is_unread_by_peft:
        what = f"PEFT 0.21.2 does not read adapters of experts of the family {adapter.model.family}"
        hint = f"train other projections than {', '.join(sorted(of_experts))} (`lora_targets`), or {merge}"
        raise UserError([Problem(what, str(load), hint)])
    if len(of_experts & {"gate_proj", "up_proj"}) == 1:
        (only,) = of_experts & {"gate_proj", "up_proj"}
        what = f"its experts have {only} alone, but PEFT joins gate_proj and up_proj in one matrix"
        raise UserError([Problem(what, str(load), f"train both, or {merge}")])
    recorded = str(base.resolve()) if base and not is_checkpoint else ""
    with complete_folder(save, overwrite, load, *filter(None, [base])) as folder:
        size = peft_folder.write_folder(folder, adapter, recorded)
    return ConvertedAdapter(save, adapter, size, tuple(_notices(adapter, of_experts)))


def _notices(adapter: Adapter, of_experts: set[str]) -> Iterator[str]:
    """Yield what others do not do with an adapter; `of_experts` are the kinds that its experts have."""
    merge = "merge the adapter for it (tools/checkpoint/adapter.py merge)"
    if of_experts and of_experts != {"gate_proj", "up_proj", "down_proj"}:
        yield f"vLLM 0.32 serves experts only if gate_proj, up_proj and down_proj have adapters; {merge}"
    if "kv_b_proj" in adapter.kinds:
        # It multiplies the weight into the queries when it loads the model (`mla_attention.split_kv_b_proj`).
        yield f"vLLM 0.32 does not apply an adapter of kv_b_proj to each token; {merge}"
    if of_experts and adapter.lora.dropout:
        yield f"the dropout {adapter.lora.dropout:g} is left out, because PEFT refuses it for experts"


def import_adapter(load: Path, save: Path, *, base: Path, overwrite: bool = False) -> ConvertedAdapter:
    """Write the adapter in a folder of PEFT to a new folder of checkpoints, which a training continues from.

    `base` is the folder of its base, in either format; a training with it loads the same folder.

    Raises:
        UserError: the adapter cannot be imported; lists all reasons. Nothing is written.
    """
    if not peft_folder.is_folder(load):
        raise UserError(f"{load}: not a folder of PEFT (no {peft_folder.CONFIG})")
    adapter = peft_folder.open_folder(load, model_in(base))
    adapter_checkpoint.check_gaps(adapter, str(load))
    with complete_folder(save, overwrite, load, base) as folder:
        arguments = checkpoint_arguments(adapter.model)
        size = adapter_checkpoint.write_checkpoint(folder, adapter, arguments, base.resolve())
    return ConvertedAdapter(save, adapter, size)


def model_in(folder: Path) -> Model:
    """Return the model in a folder of either format, without opening its weights."""
    if format_of(folder) == HUGGINGFACE:
        return read_config(read_json(folder / CONFIG), str(folder / CONFIG))
    checkpoint = find_checkpoint(folder)
    reader = reader_of(checkpoint)
    rows = reader.stored_rows(checkpoint)
    return model_of(reader.read_arguments(checkpoint), rows, str(checkpoint))
