"""Pictures and videos that a conversation names: odd ones are read, damaged and foreign ones are named."""

import base64
import io
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy
import pytest
from PIL import Image

from energon_flagscale.unusable import UnusableSample
from tools.datasets.pictures.media import content_of, picture, stamp
from tools.datasets.pictures.videos import frames


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def noise(width: int = 60, height: int = 40) -> Image.Image:
    pixels = numpy.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(pixels)


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(noise(), "JPEG", exif=exif)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(noise(), "JPEG"), ("jpg", 40, 60)),
        (encoded(noise(), "PNG"), ("png", 40, 60)),
        (encoded(noise(), "WEBP"), ("webp", 40, 60)),
        (encoded(noise(), "GIF"), ("gif", 40, 60)),
        (encoded(noise(), "BMP"), ("bmp", 40, 60)),
        (encoded(noise(), "TIFF"), ("tiff", 40, 60)),
        (encoded(noise().convert("CMYK"), "JPEG"), ("jpg", 40, 60)),
        (encoded(noise().convert("P"), "PNG"), ("png", 40, 60)),
        (encoded(noise().convert("LA"), "PNG"), ("png", 40, 60)),
        (encoded(Image.new("I;16", (5, 7)), "PNG"), ("png", 7, 5)),
        (encoded(noise(300, 1), "PNG"), ("png", 1, 300)),
        (turned(3), ("jpg", 40, 60)),
        (turned(6), ("jpg", 60, 40)),
        (encoded(noise(), "MPO", save_all=True, append_images=[noise()]), ("jpg", 40, 60)),
    ],
)
def test_a_picture_is_stored_as_it_is_with_the_size_in_which_it_is_shown(
    content: bytes, expected: tuple[str, int, int]
) -> None:
    assert picture(content, "x") == (content, *expected)


WHOLE = [encoded(noise(), "JPEG"), encoded(noise(), "JPEG", progressive=True), encoded(noise(), "PNG")]


@pytest.mark.parametrize("content", WHOLE)
@pytest.mark.parametrize("kept", [0.99, 0.5, 0.1])
def test_a_picture_that_is_cut_off_is_refused(content: bytes, kept: float) -> None:
    with pytest.raises(UnusableSample, match=r"^a\.jpg (cannot be decoded|cannot be read|is not a picture)"):
        picture(content[: int(len(content) * kept)], "a.jpg")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"<html>404</html>", "is not a picture"),
        (encoded(noise(), "ICO"), "is not a picture, .*; known are AVIF"),
        (encoded(Image.new("F", (5, 7)), "TIFF"), "32 bits per pixel"),
        (encoded(noise(), "GIF", save_all=True, append_images=[noise().rotate(9)]), "has 2 frames"),
    ],
)
def test_what_a_training_would_not_read_is_refused(content: bytes, what: str) -> None:
    with pytest.raises(UnusableSample, match=f"^a .*{what}"):
        picture(content, "a")


def test_a_picture_of_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("energon_flagscale.pictures.MOST_PIXELS", 1000)
    with pytest.raises(UnusableSample, match="60x40 pixels"):
        picture(encoded(noise(), "PNG"), "a")


def test_references_of_all_kinds(weird_path: Path) -> None:
    (weird_path / "sub dir").mkdir()
    (weird_path / "sub dir" / "a.b c.jpg").write_bytes(b"file")
    inside = weird_path / "sub dir" / "a.b c.jpg"
    for reference in (
        "sub dir/a.b c.jpg",
        "./sub dir/../sub dir/a.b c.jpg",
        str(inside),
        f"file://{inside}",
        {"path": "sub dir/a.b c.jpg", "bytes": None},
        {"url": "sub dir/a.b c.jpg"},
    ):
        assert content_of(reference, weird_path)[0] == b"file"
    address = "data:image/jpeg;base64," + base64.b64encode(b"data").decode()
    assert content_of(address, weird_path)[0] == b"data"
    assert content_of({"url": address}, weird_path)[0] == b"data"
    assert content_of(b"bytes", weird_path)[0] == b"bytes"
    assert content_of({"bytes": b"bytes", "path": "else.jpg"}, weird_path)[0] == b"bytes"


@pytest.mark.parametrize(
    ("reference", "what"),
    [
        ("none.jpg", "none.jpg: no such file in "),
        ("other.png", r"no such file .*; did you mean `other\.jpg`"),
        ("sub", "is a directory"),
        ("a.txt/b.jpg", "not a directory"),
        ("pipe", "pipe or a device"),
        ("loop", "symbolic links"),
        ("x" * 300, "too long"),
        ("../secret.jpg", "outside of .*--pictures"),
        ("/etc/passwd", "outside of .*--pictures"),
        ("file:///etc/passwd", "outside of .*--pictures"),
        ("nul\0.jpg", "not a name of a file"),
        ("\ud800.jpg", "not a name of a file"),
        ("https://example.org/a.jpg", "an address, not a file; download it first"),
        ("data:image/png;base64,AA=", "not base64"),
        ("data:image/png,AA", "not of the form data:"),
        ("", "is not a path"),
        (7, "7 is not a path"),
        (["a"], "is not a path"),
        ({}, r"neither bytes nor a path \(found: none\)"),
        ({"bytes": None}, "neither bytes nor a path"),
    ],
)
def test_references_to_nothing_are_told_in_words(reference: Any, what: str, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for name in ("other.jpg", "a.txt", "../secret.jpg"):
        (folder / name).write_bytes(b"x")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    with pytest.raises(UnusableSample, match=what):
        content_of(reference, folder)
    assert isinstance(stamp(reference, folder), str)


def test_links_that_lie_in_the_folder_are_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.jpg").write_bytes(b"x")
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "coco").symlink_to(tmp_path / "disk")
    assert content_of("coco/a.jpg", folder)[0] == b"x"
    (tmp_path / "link").symlink_to(folder)
    assert content_of("coco/a.jpg", tmp_path / "link")[0] == b"x"


def test_a_stamp_changes_if_the_file_is_replaced(tmp_path: Path) -> None:
    stamps = {stamp("a.jpg", tmp_path)}
    for content in (b"1", b"22"):
        (tmp_path / "a.jpg").write_bytes(content)
        stamps.add(stamp("a.jpg", tmp_path))
    assert len(stamps) == 3
    assert stamp({"bytes": b"1"}, tmp_path) != stamp({"bytes": b"2"}, tmp_path)


def video(path: Path, count: int, suffix: str = "mp4", codec: str = "mpeg4") -> bytes:
    """Return a video whose frames become brighter from 0 to 250."""
    file = path / f"video.{suffix}"
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for number in range(count):
            shade = 250 * number // max(count - 1, 1)
            frame = av.VideoFrame.from_ndarray(numpy.full((16, 32, 3), shade, numpy.uint8), format="rgb24")
            frame.time_base = Fraction(1, 10)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.read_bytes()


def shades(content: bytes, most: int) -> list[float]:
    found = frames(content, "video.mp4", most)
    assert all(one[1:] == ("jpg", 16, 32) for one in found)
    return [float(numpy.asarray(Image.open(io.BytesIO(one.content))).mean()) for one in found]


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "mpeg4"), ("avi", "mpeg4"), ("mkv", "mpeg4")])
def test_the_frames_of_a_video_are_evenly_spaced(tmp_path: Path, suffix: str, codec: str) -> None:
    content = video(tmp_path, 26, suffix, codec)
    expected = [250 * number // 25 for number in (0, 6, 12, 18, 25)]
    assert shades(content, 5) == pytest.approx(expected, abs=6)
    assert shades(content, 1) == pytest.approx([0], abs=6)
    assert len(shades(content, 100)) == 26


@pytest.mark.parametrize(
    ("cut", "what"),
    [
        (lambda content: b"", "an empty file"),
        (lambda content: content[: len(content) // 2], "cut off|no frame"),
        (lambda content: b"no video at all" * 100, "not a video"),
        (lambda content: encoded(noise(), "JPEG")[:100], "not a video|cut off|no frame"),
    ],
)
def test_a_video_that_is_damaged_is_refused(cut: Any, what: str, tmp_path: Path) -> None:
    with pytest.raises(UnusableSample, match=f"^v.mp4: .*({what})"):
        frames(cut(video(tmp_path, 40)), "v.mp4", 4)


def test_a_video_whose_second_half_is_missing_is_refused(tmp_path: Path) -> None:
    content = video(tmp_path, 40, "avi")  # its header comes first, unlike that of MP4
    with pytest.raises(UnusableSample, match=r"cut off"):
        frames(content[: len(content) // 2], "v.avi", 4)


def test_a_file_with_sound_alone_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sound.wav"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(numpy.zeros((1, 800), numpy.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UnusableSample, match="has no frame"):
        frames(file.read_bytes(), "sound.wav", 4)
