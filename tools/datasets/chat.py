"""Turn conversations into pairs for instruction tuning: their tokens, and which of them are learnt.

    chat.py --source chats.jsonl --tokenizer tokenizer/ --output data/chats
    chat.py --source chats.jsonl --tokenizer tokenizer/ --view 1

The source holds OpenAI's `messages` or ShareGPT's `conversations`; docs/data.md describes them. The first
command writes `train_text_document` and `valid_text_document`, one document per conversation with the ids of
the tokenizer's chat template, and a pair `..._loss_mask_document` beside each: 1 for the tokens of answers.
`conversations.json` and `lengths.svg` hold the statistics. The same command continues a killed run. The
second command shows one conversation, with what is not learnt in grey.
"""

import itertools
import json
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flagscale.checks import tokenizer as tokenizer_files
from flagscale.checks.conversations import CHAT_ROLES
from flagscale.checks.messages import ASSISTANT, ConversationError
from flagscale.errors import Problem, UserError
from flagscale.formats import option_of
from megatron.flagscale.tokenizer import SAMPLE
from tools.command import run
from tools.datasets import mistakes
from tools.datasets.chats.encoding import ChatEncoder, Chats, Settings
from tools.datasets.chats.picture import picture
from tools.datasets.chats.reading import all_records, conversation_at
from tools.datasets.chats.statistics import learnt_of, lengths_of, lines, statistics
from tools.datasets.chats.tally import total
from tools.datasets.chats.view import shown, summary
from tools.datasets.encoding import COMPARED, add_tokenizer_arguments, check_class, facts_of, use_threads
from tools.datasets.folders import read_json
from tools.datasets.options import VALID_EVERY, check_numbers
from tools.datasets.output import LOSS_MASK, TEXT, OutputFolder, Prepared
from tools.datasets.parts import about_parts, write_parts
from tools.datasets.preparing import Made
from tools.datasets.preparing import prepare as prepare_folder
from tools.datasets.records import Record, bytes_of, check_apart, content_of, source_files

CONVERSATIONS_PER_PART = 10_000
STATISTICS, LENGTHS = "conversations.json", "lengths.svg"
_DEFAULT = Settings()


def prepare(
    source: list[Path],
    tokenizer: Path,
    output: Path,
    settings: Settings = _DEFAULT,
    *,
    valid_every: int = VALID_EVERY,
    conversations_per_part: int = CONVERSATIONS_PER_PART,
    skip_mistakes: bool = False,
    overwrite: bool = False,
) -> Prepared:
    """Write the conversations of `source` and their loss masks to `output`; continue or reuse earlier work.

    Conversations 0, n, 2n, ... with n = `valid_every` go to valid (0: none).

    Args:
        skip_mistakes: leave out conversations with mistakes, instead of refusing them all.

    Raises:
        UserError: with the mistakes in the source, or if the folder was made with other settings.
    """
    check_numbers(valid_every, conversations_per_part=conversations_per_part, **settings.numbers)
    check_apart(source, output)
    files, chats = source_files(source), Chats(tokenizer, settings)
    layout, content = OutputFolder(output, (TEXT, LOSS_MASK), (STATISTICS, LENGTHS)), content_of(files)
    request = {
        "source": content,
        "tokenizer": tokenizer_files.fingerprint(tokenizer),
        "chat_template": chats.fingerprint,
        "roles": [*settings.roles],
        "longest": settings.longest,
        "valid_every": valid_every,
        "conversations_per_part": conversations_per_part,
        "skip_mistakes": skip_mistakes,
    }

    def make() -> Made:
        for notice in chats.template.notices():
            print(f"{tokenizer}: {notice}", file=sys.stderr)
        if "strftime_now" in chats.template.text:
            what = "the chat template may write the date: on another day, it gives other tokens"
            print(f"{tokenizer}: {what}", file=sys.stderr)
        everything = all_records(files)
        first = list(itertools.islice(everything, COMPARED))
        texts = [*_texts(chats, first)]
        check_class(tokenizer, texts)
        write_parts(
            layout,
            itertools.chain(first, everything),
            ChatEncoder(chats),
            valid_every=valid_every,
            documents_per_part=conversations_per_part,
            total=bytes_of(files),
        )
        if content_of(files) != content:
            raise UserError(f"{source[0]}: changed while it was being read; run again with --overwrite")
        tally = total(about_parts(layout))
        layout.mistakes.unlink(missing_ok=True)
        if wrong := [Problem(one.what, one.where) for one in tally.mistaken]:
            mistakes.report(wrong, layout.mistakes, "conversation", refuse=not skip_mistakes)
        lengths = lengths_of(layout)
        if not len(lengths):
            raise UserError(f"{source[0]}: no conversation to learn from; choose another --source")
        known = statistics(lengths, learnt_of(layout), tally)
        quantiles = known["lengths"]
        return Made(
            {
                **facts_of(tokenizer, chats.vocabulary, next(iter(texts), SAMPLE)),
                "conversations": True,
                "roles": [*settings.roles],
            },
            {
                STATISTICS: json.dumps(known, indent=2, ensure_ascii=False),
                LENGTHS: picture(lengths, quantiles["median"], quantiles["95 %"]),
            },
        )

    return prepare_folder(layout, request, make, overwrite=overwrite, may_change=("skip_mistakes",))


def _texts(chats: Chats, first: list[Record]) -> Iterator[str]:
    for record in first:
        try:
            _, text = chats.rendered(record.value)
        except ConversationError:
            continue
        yield text.text


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE|FOLDER",
        help="conversations: .jsonl, .ndjson, .json (each also .gz or .zst), .parquet",
    )
    add_tokenizer_arguments(parser)
    todo = parser.add_mutually_exclusive_group(required=True)
    todo.add_argument("--output", type=Path, help="folder for the data")
    todo.add_argument(
        "--view",
        type=int,
        metavar="N",
        help="show conversation N of the source, counted from 1, and which of its tokens are learnt",
    )
    parser.add_argument(
        "--chat-template",
        metavar="NAME|FILE",
        help="a template by name (chatml, vicuna), or a Jinja file (default: the tokenizer's)",
    )
    parser.add_argument(
        "--roles",
        nargs="+",
        default=[ASSISTANT],
        choices=sorted({*CHAT_ROLES.values()}),
        metavar="ROLE",
        help="roles whose messages are learnt, of %(choices)s (default: assistant)",
    )
    parser.add_argument(
        "--longest", type=int, metavar="TOKENS", help="leave out longer conversations (default: keep all)"
    )
    parser.add_argument(
        "--valid-every",
        type=int,
        default=VALID_EVERY,
        help="hold out every n-th conversation for validation (0: none, default: %(default)s)",
    )
    parser.add_argument(
        "--conversations-per-part",
        type=int,
        default=CONVERSATIONS_PER_PART,
        help="number of conversations per part; a kill costs one part at most (default: %(default)s)",
    )
    parser.add_argument("--skip-mistakes", action="store_true", help="leave out conversations with mistakes")
    parser.add_argument("--overwrite", action="store_true", help="replace the contents of the folder")
    return parser


def _refuse_options_of_output(arguments: Mapping[str, Any]) -> None:
    """Raise UserError with the options that have no effect on --view."""
    names = ("valid_every", "conversations_per_part", "skip_mistakes", "overwrite")
    if given := [name for name in names if arguments[name] != _parser().get_default(name)]:
        what, hint = "has no effect with --view, which writes nothing", "leave it out"
        raise UserError(Problem(what, option_of(name), hint) for name in given)


def main() -> int:
    """Prepare or show conversations from the command line."""
    arguments: dict[str, Any] = vars(parsed := _parser().parse_args())
    use_threads(parsed)
    taken = {name: arguments.pop(name) for name in ("chat_template", "roles", "longest", "threads")}
    settings = Settings(taken["chat_template"], tuple(dict.fromkeys(taken["roles"])), taken["longest"])
    number, output = arguments.pop("view"), arguments["output"]
    if number is not None:
        _refuse_options_of_output(arguments)
        check_numbers(0, **settings.numbers)
        chats = Chats(arguments["tokenizer"], settings)
        where, chat = conversation_at(source_files(arguments["source"]), chats, number)
        print(f"{where}: {summary(chat)}", shown(chat, colours=sys.stdout.isatty()), sep="\n")
        return 0
    done = prepare(**arguments, settings=settings)
    print(f"{output}: {'' if done.made_now else 'up to date, '}{done}")
    print(*lines(read_json(output / STATISTICS)), f"{output / LENGTHS}: the lengths as a picture", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
