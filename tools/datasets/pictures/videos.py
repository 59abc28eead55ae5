"""Cut a video into frames that are evenly spaced, from the first to the last one."""

import io
from collections.abc import Iterator

from energon_flagscale.unusable import UnusableSample
from tools.datasets.pictures.media import Picture

_QUALITY = 95
_LOST, _LOST_SHARE = 2, 0.01
"""Frames by which the header of a sound video may exceed what can be decoded, and their share."""


def frames(content: bytes, name: str, most: int) -> list[Picture]:
    """Return at most this many frames of an encoded video, as JPEG.

    Raises:
        UnusableSample: the video cannot be decoded to its end.
    """
    import av

    from energon_flagscale.pictures import evenly_spaced

    if not content:
        raise UnusableSample(f"{name}: an empty file")
    try:
        stated, found = _count(content)
        if stated - found > _LOST + stated * _LOST_SHARE:
            raise UnusableSample(f"{name}: cut off, only {found} of its {stated} frames can be decoded")
        if not found:
            raise UnusableSample(f"{name}: has no frame that can be decoded")
        return list(_encoded(content, evenly_spaced(range(found), most)))
    except av.FFmpegError as error:
        raise UnusableSample(f"{name}: not a video, damaged or cut off ({error.strerror})") from None


def _count(content: bytes) -> tuple[int, int]:
    """Return the number of frames that the header tells (0: unknown), and of those that can be decoded."""
    import av

    with av.open(io.BytesIO(content)) as container:
        if not container.streams.video:
            return 0, 0
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # the parts are written by several processes already
        return stream.frames, sum(1 for _ in container.decode(stream))


def _encoded(content: bytes, wanted: list[int]) -> Iterator[Picture]:
    import av

    chosen = set(wanted)
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for number, frame in enumerate(container.decode(stream)):
            if number in chosen:
                out = io.BytesIO()
                frame.to_image().save(out, "JPEG", quality=_QUALITY, subsampling=0)
                yield Picture(out.getvalue(), "jpg", frame.height, frame.width)
            if number == wanted[-1]:
                return
