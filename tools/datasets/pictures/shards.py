"""Write one part of the samples as a WebDataset shard, with a record of what it holds and was made from.

The same samples give the same bytes, wherever and whenever a part is written.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from energon_flagscale.conversations import Conversation, characters, conversation
from energon_flagscale.unusable import UnusableSample
from flagscale.files import put_in_place, write_atomic
from tools.datasets.pictures.media import Picture, content_of, picture, stamp
from tools.datasets.pictures.videos import frames
from tools.datasets.records import Record

_VERSION = 1
"""Of what is written: a change makes all parts anew."""


class Settings(NamedTuple):
    """What decides what is written for a record."""

    root: Path
    """The folder of the pictures."""
    add_placeholders: bool
    video_frames: int


class Part(NamedTuple):
    """The records of one shard with their numbers in the source, by which samples are named."""

    name: str
    """`train-000000`"""
    records: list[tuple[int, Record]]


Left = tuple[int, str, str]
"""A sample that is left out: its number, its place, and what is wrong with it."""


class _Sample(NamedTuple):
    number: int
    where: str
    identity: Any
    parsed: Conversation


class Stored(NamedTuple):
    """What a finished part holds."""

    name: str
    digest: str
    """Of what it was made from."""
    sha256: str
    """Of its shard."""
    bytes: int
    samples: int
    pictures: int
    videos: int
    most_pictures: int
    most_videos: int
    most_frames: int
    longest_text: int
    sizes: list[list[int]]
    """The distinct heights and widths of its pictures."""
    problems: list[Left]
    input_bytes: int


def shard_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.tar"


def record_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def stored(folder: Path, name: str) -> Stored | None:
    """Return the record of a part; None if it is not complete."""
    try:
        content = json.loads(record_path(folder, name).read_text(encoding="utf-8"))
        known = Stored(**{**content, "problems": [tuple(one) for one in content["problems"]]})
        size = shard_path(folder, name).stat().st_size if known.samples else 0
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    return known if known.bytes == size else None


def write_part(part: Part, folder: Path, settings: Settings) -> tuple[Stored, bool]:
    """Write a part to `folder`, complete or not at all; return its record, and whether it was there already.

    Raises:
        OSError: the machine cannot read or write.
    """
    samples, problems = _understood(part, settings)
    digest = _digest(samples, problems, settings)
    known = stored(folder, part.name)
    if known is not None and known.digest == digest:
        return known, True
    final = shard_path(folder, part.name)
    temporary = final.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("w+b") as file:
            held, unusable = _write(file, samples, settings)
            size = file.tell()
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if held["samples"]:
            put_in_place(temporary, final)
        else:  # Energon cannot read a shard without samples
            final.unlink(missing_ok=True)
    finally:
        temporary.unlink(missing_ok=True)
    made = Stored(
        name=part.name,
        digest=digest,
        sha256=sha256,
        bytes=size if held["samples"] else 0,
        problems=sorted(problems + unusable),
        input_bytes=sum(record.size for _, record in part.records),
        **held,
    )
    write_atomic(record_path(folder, part.name), json.dumps(made._asdict()))
    return made, False


def _understood(part: Part, settings: Settings) -> tuple[list[_Sample], list[Left]]:
    """Return the samples of a part, and those that are no conversation."""
    samples, problems = [], []
    for number, record in part.records:
        try:
            parsed = conversation(record.value, add_placeholders=settings.add_placeholders)
        except ValueError as error:
            problems.append((number, record.where, str(error)))
        else:
            samples.append(_Sample(number, record.where, record.value.get("id"), parsed))
    return samples, problems


def _write(file: Any, samples: list[_Sample], settings: Settings) -> tuple[dict[str, Any], list[Left]]:
    """Write the samples that can be used; return what they hold, and those that cannot."""
    problems: list[Left] = []
    written: list[_Files] = []
    texts: list[int] = []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as shard:
        for number, where, identity, parsed in samples:
            try:
                files = _files(parsed, settings)
            except UnusableSample as error:
                problems.append((number, where, str(error)))
                continue
            known: dict[str, Any] = {"id": identity} if isinstance(identity, str | int) else {}
            text = json.dumps({**known, "messages": parsed.messages}, ensure_ascii=False)
            _add(shard, f"{number:09d}.json", text.encode())
            for name, one in files.named():
                _add(shard, f"{number:09d}.{name}.{one.suffix}", one.content)
            written.append(files.without_content())
            texts.append(characters(parsed.messages))
    held = {
        "samples": len(written),
        "pictures": sum(len(files.pictures) for files in written),
        "videos": sum(len(files.videos) for files in written),
        "most_pictures": max((len(files.pictures) for files in written), default=0),
        "most_videos": max((len(files.videos) for files in written), default=0),
        "most_frames": max((len(video) for files in written for video in files.videos), default=0),
        "longest_text": max(texts, default=0),
        "sizes": sorted({(one.height, one.width) for files in written for one in files.pictures}),
    }
    return held, problems


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # its time, owner and mode are constants
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


class _Files(NamedTuple):
    """The pictures of a sample, and the frames of each of its videos."""

    pictures: list[Picture]
    videos: list[list[Picture]]

    def named(self) -> Iterator[tuple[str, Picture]]:
        """Yield the name in the shard of each file, without the sample's number and the suffix."""
        yield from ((f"image{number}", one) for number, one in enumerate(self.pictures))
        for number, video in enumerate(self.videos):
            yield from ((f"video{number}.{at:03d}", frame) for at, frame in enumerate(video))

    def without_content(self) -> Self:
        """Return the same files without their bytes, so that a part needs little memory."""
        bare = [[one._replace(content=b"") for one in files] for files in (self.pictures, *self.videos)]
        return type(self)(bare[0], bare[1:])


def _files(parsed: Conversation, settings: Settings) -> _Files:
    pictures = [picture(*content_of(one, settings.root)) for one in parsed.images]
    videos = [frames(*content_of(one, settings.root), settings.video_frames) for one in parsed.videos]
    return _Files(pictures, videos)


def _digest(samples: list[_Sample], problems: list[Left], settings: Settings) -> str:
    """Return a hash that changes if anything changes from which a part is made, except where it lies."""
    digest = hashlib.sha256(repr((_VERSION, settings.video_frames, problems)).encode(errors="surrogatepass"))
    for number, where, identity, parsed in samples:
        stamps = [stamp(one, settings.root) for one in (*parsed.images, *parsed.videos)]
        line = repr((number, where, identity, parsed.messages, stamps))
        digest.update(line.encode(errors="surrogatepass"))
    return digest.hexdigest()
