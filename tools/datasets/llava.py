"""Turn conversations about pictures into the shards that Energon reads.

    llava.py --source llava.json --pictures images/ --output data/mine

The source is LLaVA's JSON, messages of ShareGPT or OpenAI, or Parquet; docs/multimodal.md describes them.
The same command continues a killed run. Samples are written in parts of a fixed number, each of which is one
shard; it appears in `unfinished/` once complete, and a restart reuses it unless its records or pictures have
changed. At the end Energon prepares the folder, and everything is renamed; `.nv-meta`, without which Energon
opens nothing, is last.
"""

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flagscale.errors import Problem, UserError
from tools.command import run
from tools.datasets import mistakes
from tools.datasets.folders import locked
from tools.datasets.options import VALID_EVERY, check_numbers
from tools.datasets.pictures import energon
from tools.datasets.pictures.folder import Finished, PictureFolder
from tools.datasets.pictures.reading import Reading
from tools.datasets.pictures.shards import Settings, Stored
from tools.datasets.pictures.writers import written
from tools.datasets.records import bytes_of, check_apart, content_of, source_files
from tools.progress import Progress

SAMPLES_PER_SHARD = 1000
VIDEO_FRAMES = 8


def prepare(
    source: list[Path],
    output: Path,
    *,
    pictures: Path | None = None,
    valid_every: int = VALID_EVERY,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    video_frames: int = VIDEO_FRAMES,
    add_placeholders: bool = False,
    skip_mistakes: bool = False,
    processes: int = 1,
    overwrite: bool = False,
) -> Finished:
    """Write the samples of `source` as a folder that Energon reads; continue or reuse earlier work.

    Samples 0, n, 2n, ... with n = `valid_every` go to the split `val` (0: none).

    Args:
        pictures: folder below which the pictures are; default: that of the first source.
        add_placeholders: put pictures that no text mentions before the first message.
        skip_mistakes: leave out samples with mistakes, instead of refusing them all.

    Raises:
        UserError: with every mistake in the source, or if the folder was made with other settings.
    """
    check_numbers(
        valid_every, samples_per_shard=samples_per_shard, video_frames=video_frames, processes=processes
    )
    energon.check_installed()
    check_apart(source, output)
    files = source_files(source)
    root = pictures or (source[0] if source[0].is_dir() else source[0].parent)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --pictures is the folder of the pictures")
    content = content_of(files)
    request = {
        "source": [path.resolve().name for path in source],
        "content": content,
        "valid_every": valid_every,
        "samples_per_shard": samples_per_shard,
        "video_frames": video_frames,
        "add_placeholders": add_placeholders,
        "skip_mistakes": skip_mistakes,
    }
    settings = Settings(root, add_placeholders, video_frames)
    folder = PictureFolder(output)
    with locked(output):
        if overwrite:
            folder.discard()
        if (ready := folder.finished(request)) is not None:
            return ready
        folder.begin(request)
        reading = Reading(files, valid_every, samples_per_shard)
        parts = _write(reading, folder, settings, processes, total=bytes_of(files))
        if content_of(files) != content:
            raise UserError(f"{source[0]}: changed while it was being read; run the same command again")
        left = sorted([*reading.problems, *(problem for part in parts for problem in part.problems)])
        if left:
            wrong = [Problem(what, where) for _, where, what in left]
            mistakes.report(wrong, folder.mistakes, "sample", refuse=not skip_mistakes)
        return folder.finish(parts, request, len(left))


def _write(
    reading: Reading, folder: PictureFolder, settings: Settings, processes: int, *, total: int
) -> list[Stored]:
    """Write all parts and show the progress; return what they hold."""
    parts, reused = [], 0
    with Progress(total) as progress:
        for part, was_there in written(reading.parts(), folder.unfinished, settings, processes):
            parts.append(part)
            reused += was_there
            progress.advance(part.input_bytes, samples=part.samples, pictures=part.pictures)
    if reused:
        print(f"reusing {reused} part(s) of an earlier run", file=sys.stderr)
    return parts


def main() -> int:
    """Prepare from the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source",
        type=Path,
        nargs="+",
        required=True,
        help="files or folders: .json, .jsonl, .ndjson, .parquet",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards")
    parser.add_argument(
        "--pictures", type=Path, help="folder that the paths of pictures begin in (default: the source's)"
    )
    parser.add_argument(
        "--valid-every",
        type=int,
        default=VALID_EVERY,
        help="hold out every n-th sample for the split `val` (0: none, default: %(default)s)",
    )
    parser.add_argument(
        "--samples-per-shard",
        type=int,
        default=SAMPLES_PER_SHARD,
        help="number of samples per shard; a kill costs one per process at most (default: %(default)s)",
    )
    parser.add_argument(
        "--video-frames",
        type=int,
        default=VIDEO_FRAMES,
        help="the most frames of a video, evenly spaced (default: %(default)s)",
    )
    parser.add_argument(
        "--add-placeholders",
        action="store_true",
        help="put pictures that no text mentions before the user's first message",
    )
    parser.add_argument("--skip-mistakes", action="store_true", help="leave out samples with mistakes")
    parser.add_argument(
        "--processes",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes that check and write samples (default: one per core, here %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the contents of the folder")
    arguments = vars(parser.parse_args())
    output = arguments["output"]
    done = prepare(**arguments)
    print(f"{output}: {'' if done.made_now else 'up to date, '}{done}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
