"""Voxels small enough to send in a page: HU in 8 bits and masks as bits, as a radiologist looks at them.

Display grid: slices from the lowest, rows from anterior, columns from the patient's right.
"""

import base64
import zlib
from collections.abc import Mapping
from math import ceil

import numpy as np
from numpy.typing import NDArray

from tumorvqa.scans import Box, Region

SIDE = 256  # pixels, at most
LIMIT = 9_000_000  # bytes of packed voxels, so that a page stays below 15 MB
# One picture serves every window: steps of 4 HU where soft tissue lies, of 16 HU in lung and bone
HU_KNOTS, CODE_KNOTS = (-1024, -200, 300, 1500), (0, 50, 175, 255)
CODES = np.interp(np.arange(-(2**15), 2**15), HU_KNOTS, CODE_KNOTS).round().astype(np.uint8)  # of any int16


def decoded() -> list[int]:
    """The HU of each of the 256 codes."""
    return np.interp(np.arange(256), CODE_KNOTS, HU_KNOTS).round().astype(int).tolist()


def packed_volume(hu: NDArray[np.int16], side: int = SIDE, limit: int = LIMIT) -> tuple[int, str]:
    """Voxels per pixel along a side, and the text of the codes: base64 of deflate of differences to the slice below."""
    factor = max(1, ceil(max(hu.shape[:2]) / side))
    while True:
        codes = CODES[_smaller(hu, factor) + 2**15]
        seen = codes[::-1, ::-1].transpose(2, 1, 0)
        bytes_ = zlib.compress(np.diff(seen, axis=0, prepend=np.uint8(0)).tobytes())
        if len(bytes_) <= limit or factor >= max(hu.shape[:2]):
            return factor, base64.b64encode(bytes_).decode()
        factor += 1


def _smaller(hu: NDArray[np.int16], factor: int) -> NDArray[np.int32]:
    """Means of blocks of `factor` x `factor` voxels in a slice; those at the rim repeat the last voxel."""
    rim = [(0, -size % factor) for size in hu.shape[:2]]
    padded = np.pad(hu, [*rim, (0, 0)], mode="edge")
    total = padded[::factor, ::factor].astype(np.int32)
    for i, j in np.ndindex(factor, factor):
        if i or j:
            total += padded[i::factor, j::factor]
    return total // factor**2


def packed_masks(regions: Mapping[str, Region], shape: tuple[int, ...], factor: int) -> tuple[list[Box], str]:
    """The box of each mask in the display grid (slices, rows, columns), and the text of all bits, each mask from a new
    byte on. A pixel shows a structure of which it holds a voxel, so that none is lost.
    """
    rows, columns = (ceil(size / factor) for size in (shape[1], shape[0]))
    boxes: list[Box] = []
    bits = []
    for region in regions.values():
        (i, j), (k, m), below_above = region.box
        wide, high = (-(-j // factor) - i // factor, -(-m // factor) - k // factor)
        whole = np.zeros((wide * factor, high * factor, region.mask.shape[2]), bool)
        x, y = i % factor, k % factor
        whole[x : x + region.mask.shape[0], y : y + region.mask.shape[1]] = region.mask
        small: NDArray[np.bool_] = np.asarray(whole.reshape(wide, factor, high, factor, -1).any(axis=(1, 3)))
        bits.append(np.packbits(small[::-1, ::-1].transpose(2, 1, 0), axis=None, bitorder="little").tobytes())
        top, left = rows - k // factor - high, columns - i // factor - wide
        boxes.append((below_above, (top, top + high), (left, left + wide)))
    return boxes, base64.b64encode(zlib.compress(b"".join(bits))).decode()
