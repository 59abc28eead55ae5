"""Train a byte-level BPE tokenizer: `train_tokenizer.py --source texts/ --output tokenizer/`.

The folder can be opened offline with `AutoTokenizer.from_pretrained` and with Megatron's
`--tokenizer-type HuggingFaceTokenizer --tokenizer-model <folder>`. Any text survives encoding and decoding.
"""

import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flagscale.errors import UserError
from tools.command import run
from tools.datasets.documents import Source, add_arguments, skipped_notice, source_of
from tools.datasets.folders import locked, read_json, refuse_other, write_json

EOS = "<|endoftext|>"
VOCABULARY = 8192

_RECORD = "training.json"


def train(
    source: Source,
    output: Path,
    *,
    vocabulary: int = VOCABULARY,
    special: Sequence[str] = (EOS,),
    overwrite: bool = False,
) -> bool:
    """Write a tokenizer trained on `source` to the folder `output`; return False if it was there already.

    `output` appears complete or not at all. Each of the `special` tokens is one token wherever it stands; the
    first of them ends a text. Raises UserError if its tokenizer has another source or size.
    """
    if vocabulary < (smallest := 256 + len(special)):
        raise UserError(f"--vocabulary {vocabulary}: must be at least {smallest} (bytes and special tokens)")
    asked = {"source": source.fingerprint(), "vocabulary": vocabulary}
    asked |= {"special": [*special]} if [*special] != [EOS] else {}
    with locked(output.parent):
        if output.exists() and not overwrite:
            made = read_json(output / _RECORD)
            if made is None:
                raise UserError(
                    f"{output}: not made by this tool; choose another --output, or --overwrite it"
                )
            refuse_other(output, made, asked)
            return False
        temporary = output.with_name(output.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _train_into(temporary, source, vocabulary, special)
        write_json(temporary / _RECORD, asked)
        if output.exists():
            shutil.rmtree(output)
        temporary.replace(output)
        return True


def _train_into(folder: Path, source: Source, vocabulary: int, special: Sequence[str]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    skipped: list[Path] = []
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # all bytes, so that every text can be encoded
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator((document.text for document in source.documents(skipped.append)), trainer)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": special[0],
        "clean_up_tokenization_spaces": False,  # decoding must return the text unchanged
        "model_max_length": 10**30,  # transformers' way of saying "no limit"
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", {"eos_token": special[0]})
    if skipped:
        print(skipped_notice(skipped), file=sys.stderr)


def main() -> int:
    """Train from the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder for the tokenizer")
    parser.add_argument(
        "--vocabulary", type=int, default=VOCABULARY, help="number of tokens (default: %(default)s)"
    )
    parser.add_argument(
        "--special",
        nargs="+",
        default=[EOS],
        metavar="TOKEN",
        help="tokens that are never divided; the first one ends a text (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the contents of the folder")
    arguments = parser.parse_args()
    made = train(
        source_of(arguments),
        output := arguments.output,
        vocabulary=arguments.vocabulary,
        special=arguments.special,
        overwrite=arguments.overwrite,
    )
    print(f"{output}: {'tokenizer trained' if made else 'up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
