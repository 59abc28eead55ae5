"""Export a trained adapter (LoRA) to PEFT, import one from PEFT, or merge one into its base."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

if not __package__:  # run as a file: import from the root of the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from megatron.flagscale.convert.model import DTYPES
from tools.command import run
from tools.progress import Progress


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, load: str) -> ArgumentParser:
        made = commands.add_parser(name, help=text, description=f"{text[:1].upper()}{text[1:]}.")
        made.add_argument("--load", type=Path, required=True, help=load)
        made.add_argument("--save", type=Path, required=True, help="folder to create")
        made.add_argument("--overwrite", action="store_true", help="replace --save if it exists")
        return made

    checkpoints = "folder of the adapter's checkpoints"
    export = command(
        "export", "write a trained adapter as a folder of PEFT, for transformers and vLLM", checkpoints
    )
    export.add_argument(
        "--base",
        type=Path,
        help="folder of its base, to compare with; PEFT finds a Hugging Face folder by it",
    )
    brought = command("import", "write a folder of PEFT as a checkpoint to continue from", "folder of PEFT")
    brought.add_argument("--base", type=Path, required=True, help="folder of its base, in either format")
    merge = command(
        "merge", "write a model with the adapter in its weights", f"folder of PEFT, or {checkpoints}"
    )
    merge.add_argument("--base", type=Path, required=True, help="folder of its base, in either format")
    merge.add_argument(
        "--to",
        choices=("huggingface", "megatron"),
        default="huggingface",
        help="format (default: huggingface)",
    )
    merge.add_argument("--dtype", choices=sorted(DTYPES), help="cast all tensors (default: keep precisions)")
    merge.add_argument("--tokenizer", type=Path, help="folder of the tokenizer (default: the base's)")
    for made in (export, merge):
        made.add_argument("--iteration", type=int, help="checkpoint to use (default: newest complete one)")
    return parser


def _merge(arguments: Namespace) -> str:
    from megatron.flagscale.convert.convert import convert
    from megatron.flagscale.convert.merged import AdapterFolder

    made = convert(
        arguments.base,
        arguments.save,
        to=arguments.to,
        dtype=DTYPES[arguments.dtype] if arguments.dtype else None,
        tokenizer=arguments.tokenizer,
        adapter=AdapterFolder(arguments.load, arguments.iteration),
        overwrite=arguments.overwrite,
        progress=Progress,
    )
    _print_notices(made.notices)
    return f"{made.target}: {made.model.family}, {made.tensors} tensors, {made.bytes / 1e6:,.1f} MB"


def _print_notices(notices: tuple[str, ...]) -> None:
    for notice in notices:
        print(f"note: {notice}", file=sys.stderr)


def main() -> int:
    """Run the sub-command given on the command line."""
    arguments = _parser().parse_args()
    if arguments.command == "merge":
        print(_merge(arguments))
        return 0
    from megatron.flagscale.convert.adapter_conversion import export_adapter, import_adapter

    load, save, base, overwrite = arguments.load, arguments.save, arguments.base, arguments.overwrite
    if arguments.command == "export":
        made = export_adapter(load, save, base=base, iteration=arguments.iteration, overwrite=overwrite)
    else:
        made = import_adapter(load, save, base=base, overwrite=overwrite)
    _print_notices(made.notices)
    adapter, lora = made.adapter, made.adapter.lora
    what = f"rank {lora.rank}, alpha {lora.alpha:g}, {len(adapter.projections)} projections"
    print(f"{made.target}: {what} ({', '.join(adapter.kinds)}), {made.bytes / 1e6:,.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
