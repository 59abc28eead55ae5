"""The names that files of conversations use for parts and pictures. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping

KINDS: Mapping[str, str] = {
    "text": "text",
    "input_text": "text",
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "video": "video",
    "video_url": "video",
}
"""Types of parts in files, and what they become."""
PICTURES = frozenset({"avif", "bmp", "gif", "jp2", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp"})
"""Ends of the names of pictures and frames."""
VIDEOS = frozenset({"avi", "mkv", "mov", "mp4", "webm"})
"""Ends of the names of videos, of which frames have to be made first."""
