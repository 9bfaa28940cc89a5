"""Random tokens and images in the shape that a model reads: data for measurements of speed, not of learning."""
# V vocabulary, C channels, S image size

import hashlib
from pathlib import Path

import numpy as np

from dnt.data.augment import Augment
from dnt.data.images import ROW, ImageData, Images, Stored
from dnt.data.pieces import SPLITS
from dnt.data.text import PreparedText
from dnt.data.tokenizers import IdsTokenizer
from dnt.data.tokens import TextData, Windows

NAME = "random"
TOKENS = 1 << 20
IMAGES = 128


def random_text(vocab_size: int, context: int) -> TextData:
    """Tokens drawn evenly from 0 to V - 1, the same in all splits."""
    tokenizer = IdsTokenizer(vocab_size)
    size = max(TOKENS, 8 * context)
    tokens = np.random.default_rng(0).integers(vocab_size, size=size, dtype=np.int64).astype(tokenizer.dtype)
    sha256 = hashlib.sha256(tokens.tobytes()).hexdigest()
    windows = Windows(tokens, context, NAME)
    prepared = PreparedText(NAME, sha256, tokenizer, dict.fromkeys(SPLITS, tokens))
    return TextData(prepared, context, windows, windows, windows)


def random_images(folder: Path, classes: int, channels: int, image_size: int, augment: Augment) -> ImageData:
    """Pixels drawn evenly from 0 to 255, the same in all splits, stored decoded in `folder` as prepared images are."""
    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(IMAGES, channels, image_size, image_size), dtype=np.uint8)
    (folder / "images.bin").write_bytes(pixels.tobytes())
    table = np.zeros(IMAGES, ROW)
    table["label"], table["key"] = random.integers(classes, size=IMAGES), np.arange(IMAGES)
    np.save(folder / "table.npy", table)
    meta = {
        **{
            "classes": [str(i) for i in range(classes)],
            "channels": channels,
            "broken": [],
            "made": [],
            "revision": None,
        },
        **{"decoded": True, "size": [image_size, image_size], "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()},
    }
    stored, half = Stored(folder, meta), (0.5,) * channels
    images = Images(stored, np.arange(IMAGES), image_size, half, half, augment)
    return ImageData(NAME, stored, image_size, "train", augment, images, images, images)
