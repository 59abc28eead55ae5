"""Read the pictures and videos that a conversation names, and refuse those that no training could use."""

import base64
import binascii
import errno
import hashlib
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from energon_flagscale.unusable import UnusableSample
from flagscale.files import read_regular

_SUFFIXES = {
    "AVIF": "avif", "BMP": "bmp", "GIF": "gif", "JPEG": "jpg", "JPEG2000": "jp2", "MPO": "jpg", "PNG": "png",
    "PPM": "ppm", "TIFF": "tiff", "WEBP": "webp",
}  # fmt: skip
"""Pillow's names of the formats that the loader reads, and the suffixes of the files in a shard."""
_OTHER_SUFFIXES = (".jpg", ".png", ".jpeg", ".webp", ".gif", ".JPG", ".PNG")
# Errors that belong to the name of one file. Any other is the machine's.
_OF_THE_NAME = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
    errno.ENXIO,
}  # fmt: skip


class Picture(NamedTuple):
    """An encoded picture, and its size in pixels as it is shown (turned as its EXIF data says)."""

    content: bytes
    suffix: str
    height: int
    width: int


def content_of(reference: Any, root: Path) -> tuple[bytes, str]:
    """Return the bytes that a reference stands for, and its name for messages.

    Args:
        reference: bytes, a path below `root`, a `data:` address, or a mapping with `bytes`, `path` or `url`.

    Raises:
        UnusableSample: there is no such file below `root`.
        OSError: the machine cannot read it.
    """
    if isinstance(reference, dict):
        found = [reference[key] for key in ("bytes", "path", "url") if reference.get(key) is not None]
        if not found:
            raise UnusableSample(f"neither bytes nor a path (found: {', '.join(reference) or 'none'})")
        reference = found[0]
    if isinstance(reference, bytes):
        return reference, "an embedded picture"
    if not isinstance(reference, str) or not reference:
        raise UnusableSample(f"{reference!r:.40} is not a path")
    if reference.startswith("data:"):
        return _decoded(reference), "an embedded picture"
    path = path_of(reference, root)
    try:
        return read_regular(path), reference
    except OSError as error:
        if error.errno not in _OF_THE_NAME:
            raise
        raise UnusableSample(_refusal(reference, path, root, error)) from None


def stamp(reference: Any, root: Path) -> str:
    """Return a text that changes if the picture that a reference stands for is written or replaced."""
    if isinstance(reference, dict):
        return ";".join(f"{key}={stamp(value, root)}" for key, value in sorted(reference.items()))
    if isinstance(reference, bytes):
        return hashlib.sha256(reference).hexdigest()
    if not isinstance(reference, str) or reference.startswith("data:"):
        return repr(reference)
    try:
        stat = path_of(reference, root).stat()
    except (OSError, UnusableSample):
        return f"{reference!r} is absent"
    return repr((reference, stat.st_size, stat.st_mtime_ns))


def path_of(reference: str, root: Path) -> Path:
    """Return the path of a file named in a record; it must be below `root`, links within which are followed.

    Raises:
        UnusableSample: it is an address, or outside of `root`.
    """
    if reference.startswith(("http://", "https://", "s3://", "gs://")):
        raise UnusableSample(f"{reference:.80}: an address, not a file; download it first")
    name = reference.removeprefix("file://")
    if "\0" in name or not _is_encodable(name):
        raise UnusableSample(f"{name!r:.80} is not a name of a file")
    top = os.path.abspath(root)
    path = os.path.normpath(os.path.join(top, name))
    if os.path.commonpath((top, path)) != top:
        raise UnusableSample(
            f"{reference}: outside of {root}; name a folder that contains it with --pictures"
        )
    return Path(path)


def _is_encodable(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _refusal(reference: str, path: Path, root: Path, error: OSError) -> str:
    if error.errno != errno.ENOENT:
        return f"{reference}: {(error.strerror or 'cannot be read').lower()} (in {root})"
    others = [
        path.with_suffix(suffix).name for suffix in _OTHER_SUFFIXES if path.with_suffix(suffix).is_file()
    ]
    return f"{reference}: no such file in {root}" + (f"; did you mean `{others[0]}`?" if others else "")


def _decoded(address: str) -> bytes:
    """Return the bytes of a `data:` address."""
    head, comma, body = address.partition(",")
    if not comma or not head.endswith(";base64"):
        raise UnusableSample("an embedded picture is not of the form data:image/jpeg;base64,...")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise UnusableSample("an embedded picture is not base64; its text may be cut off") from None


def picture(content: bytes, name: str) -> Picture:
    """Return a picture whose every pixel the loader of a training can decode.

    Raises:
        UnusableSample: it cannot.
    """
    from energon_flagscale.pictures import check_picture, open_picture

    with warnings.catch_warnings(action="ignore"):
        opened = open_picture(content, name)
        form, (height, width) = opened.image.format or "", opened.size
        check_picture(opened)
    return Picture(content, _SUFFIXES[form], height, width)
