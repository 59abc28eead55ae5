"""vLLM decodes pictures to the pixels that trainings see."""

from __future__ import annotations

import numpy as np
from vllm.multimodal.media.image import ImageMediaIO

from energon_flagscale.pictures import decoded, open_picture
from tests.worker.test_pictures import BLUE, RED, halves, palette, saved, turned


def test_vllm_decodes_the_same_pixels() -> None:
    for data in (palette(True), saved(halves((*RED, 100), (*BLUE, 200), "RGBA"), "PNG"), turned(6)):
        theirs = ImageMediaIO().load_bytes(data).media
        np.testing.assert_array_equal(np.asarray(decoded(open_picture(data, "image0"))), np.asarray(theirs))
