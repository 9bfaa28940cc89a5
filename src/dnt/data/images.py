"""Images -> batches. The training batch is a function of (seed, step): which samples, and how each is augmented.

Every image is decoded once when it is prepared, so that a broken one is known by then:

    <cache>/images/<key>/table.npy   of every image: where it lies, its class, its split, a hash of its name
    <cache>/images/<key>/images.bin  (C, H, W) uint8 pixels if all images have one size and few, else the encoded images
    <cache>/images/<key>/meta.json   classes, channels, mean, deviation, broken images, sha256; written last

The files are memory-mapped: memory does not grow with their size. The key is a hash of the files' state, the columns
and the channels.
"""
# B batch, N classes, C channels, H height, W width, S image size (H = W = S)

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dnt.data.augment import AUGMENTATIONS, Augment
from dnt.data.cache import MOST_THREADS, cache_root, cores, prepare_once, progress_bar
from dnt.data.pictures import Encoded, Pictures, decode, divided, find_pictures, key_of, look
from dnt.data.pieces import SPLITS
from dnt.data.transforms import Augmented, Mix, all_centered, one_thread, soft_labels
from dnt.extras import extra
from dnt.files import atomic_write, read_json
from dnt.lookup import lookup

FORMAT = 2  # part of the cache key; raise it when what this file writes changes
DECODED = 1 << 30  # bytes of pixels up to which images of one size are kept decoded
STATISTICS = 5000  # training images that mean and deviation are taken from
LOOKED_AT = 256  # encoded images in memory at a time, while they are prepared
# `start` and `size` are in the encoded bytes; the pixels of decoded images lie in the order of the rows
ROW = np.dtype([("start", "<i8"), ("size", "<i8"), ("label", "<i4"), ("split", "u1"), ("key", "<u8")])
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of ImageNet-1k, RGB, as timm has them
NORMALIZATIONS = ("train", "imagenet")


@dataclass(frozen=True)
class Stored:
    """Prepared images in memory-mapped files."""

    folder: Path
    meta: dict[str, Any]

    @cached_property
    def table(self) -> np.ndarray:
        """(images,) of ROW."""
        return np.load(self.folder / "table.npy", allow_pickle=False)

    @cached_property
    def content(self) -> np.ndarray:
        """(bytes,) uint8 of encoded images, or (images, C, H, W) uint8."""
        content = np.memmap(self.folder / "images.bin", np.uint8, mode="r").view(np.ndarray)
        return content.reshape(-1, self.meta["channels"], *self.meta["size"]) if self.meta["decoded"] else content

    def image(self, i: int) -> Tensor:
        """(C, H, W) uint8."""
        if self.meta["decoded"]:
            return torch.from_numpy(self.content[i].copy())
        start, size = int(self.table["start"][i]), int(self.table["size"][i])
        data = self.content[start : start + size]
        return torch.from_numpy(np.array(decode(data.tobytes(), self.meta["channels"])))

    def images(self, indices: np.ndarray) -> Tensor | list[Tensor]:
        """(b, C, H, W) uint8; encoded images, which may differ in size, one by one, decoded by several threads."""
        if self.meta["decoded"]:
            return torch.from_numpy(self.content[indices])
        with ThreadPoolExecutor(min(MOST_THREADS, cores())) as pool:
            return list(pool.map(self.image, indices.tolist()))


@dataclass(frozen=True)
class Images:
    """One split, augmented for training."""

    stored: Stored
    indices: np.ndarray
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment

    @property
    def classes(self) -> int:
        return len(self.stored.meta["classes"])

    @cached_property
    def labels(self) -> Tensor:
        """(images,) int64."""
        return torch.from_numpy(self.stored.table["label"][self.indices].astype(np.int64))

    def __len__(self) -> int:
        return len(self.indices)

    def beginning(self, images: int) -> "Images":
        """So many alone, all if 0: the first by the hash of their names, so that a sorted folder gives all classes."""
        mixed = self.indices[np.argsort(self.stored.table["key"][self.indices], kind="stable")]
        return replace(self, indices=mixed[: images or None])

    def members(self, samples: np.ndarray, seed: int) -> np.ndarray:
        """Which image of the split each of the given samples of the endless sequence of epochs is."""
        epochs, places = np.divmod(samples, len(self))
        members = np.empty_like(samples)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            members[here] = epoch_order(seed, int(epoch), len(self))[places[here]]
        return members

    def batch(self, seed: int, step: int, batch_size: int, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The asked rows of the global batch of one training step; no other image than these and partners is read.

        Returns images (b, C, S, S) float32, normalized, and labels, (b,) int64, or (b, N) float32 where the
        augmentation mixes or smooths them.
        """
        asked = np.arange(batch_size)[rows]
        mix = Mix(self.augment, self.size, seed, step) if self.augment.mixes else None
        partners = Mix.partners(asked, batch_size) if mix else asked
        needed = np.union1d(asked, partners)
        samples = step * batch_size + needed
        members = self.members(samples, seed)
        raw, labels = self.stored.images(self.indices[members]), self.labels[torch.from_numpy(members)]
        own, other = (torch.from_numpy(np.searchsorted(needed, these)) for these in (asked, partners))
        if mix or self.augment.smoothing:
            labels = soft_labels(labels, self.classes, self.augment.smoothing)
        with one_thread():
            images = self.normalized(self.augmented.before(raw, seed, samples))
            images = self.augmented.after(images, seed, samples)
            if not mix:
                return images[own], labels[own]
            return mix.images(images[own], images[other]), mix.labels(labels[own], labels[other])

    def whole(self, batch_size: int, rows: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order, not augmented, in batches of one shape, of which the asked rows are given.

        Images (b, C, S, S) float32 and labels (b,) int64; padding is zero with the label -1.
        """
        for start in range(0, len(self), batch_size):
            asked = np.arange(start, start + batch_size)[rows]
            there = asked[asked < len(self)]
            images = torch.zeros(len(asked), len(self.mean), self.size, self.size)
            labels = torch.full((len(asked),), -1)
            if len(there):
                found = self.stored.images(self.indices[there])
                images[: len(there)] = self.normalized(all_centered(found, self.size, self.augment.center))
                labels[: len(there)] = self.labels[torch.from_numpy(there)]
            yield images, labels

    def normalized(self, images: Tensor) -> Tensor:
        """(pixel / 255 - mean) / std, (B, C, S, S) uint8 -> float32."""
        mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (self.mean, self.std))
        return images.float().div_(255).sub_(mean).div_(std)

    @cached_property
    def augmented(self) -> Augmented:
        return Augmented(self.augment, self.size)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(images)


@dataclass(frozen=True)
class ImageData:
    """Prepared images, in the size of a model."""

    name: str
    stored: Stored
    image_size: int
    normalization: str
    augment: Augment
    train: Images
    validation: Images
    test: Images
    unit: ClassVar[str] = "images"
    per_sample: ClassVar[int] = 1
    tokenizer: ClassVar[None] = None

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """A label is a place among them."""
        return tuple(self.stored.meta["classes"])

    @property
    def channels(self) -> int:
        return self.stored.meta["channels"]

    @property
    def broken(self) -> list[dict[str, str]]:
        """The images that were left out: {name, reason} of each."""
        return self.stored.meta["broken"]

    def describe(self) -> dict[str, object]:
        """What a table made from this data must state."""
        meta = self.stored.meta
        description = {
            "name": self.name,
            "sha256": meta["sha256"],
            "classes": self.classes,
            "class_names": list(self.class_names),
            "channels": self.channels,
            "image_size": self.image_size,
            "images": {split: len(getattr(self, split)) for split in SPLITS},
            "made_splits": meta["made"],
            "broken": len(self.broken),
            "normalization": {"from": self.normalization, "mean": list(self.train.mean), "std": list(self.train.std)},
            "augmentation": asdict(self.augment),
        }
        return description | ({"revision": meta["revision"]} if meta["revision"] else {})


def prepare_images(
    name: str = "digits",
    image_size: int | None = None,
    augment: str | Augment = "none",
    channels: int | None = None,
    normalization: str = "train",
    image: str | None = None,
    label: str | None = None,
    most_broken: float = 0.01,
    progress: bool = True,
) -> ImageData:
    """Images ready to train on, from the cache ($DNT_CACHE, else ~/.cache/dnt) if they were prepared before.

    name: see dnt.data.pictures; image_size: side in pixels, by default that of the images if all have one; augment: a
    row of AUGMENTATIONS, or one's own; channels: 1 or 3, by default 1 if all are gray; normalization: "train"
    (mean and deviation of training images) or "imagenet"; image, label: columns of parquet; most_broken: the share of
    images that may be left out since they cannot be decoded or have no label. ValueError in one line for what cannot
    be used.
    """
    chosen = lookup(AUGMENTATIONS, augment, "augmentation") if isinstance(augment, str) else augment
    if channels not in (None, 1, 3):
        raise ValueError(f"channels is {channels}; images have 1 (gray) or 3 (RGB).")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}; it is a side in pixels, at least 1.")
    lookup(dict.fromkeys(NORMALIZATIONS), normalization, "normalization")
    extra("torchvision", "images")
    pictures = find_pictures(name, image, label)
    key = hashlib.sha256(f"{FORMAT} {channels} {pictures.state}".encode()).hexdigest()[:24]
    folder = cache_root() / "images" / key
    prepare_once(
        folder,
        name,
        lambda: write_images(folder, name, pictures, channels, most_broken, progress),
        lambda: bool(pictures.source.revision) or find_pictures(name, image, label).state == pictures.state,
        progress,
    )
    stored = Stored(folder, read_json(folder / "meta.json", "an image cache (delete its folder)"))
    check_broken(name, stored.meta["broken"], len(stored.table) + len(stored.meta["broken"]), most_broken)
    size = image_size or common_size(name, stored.meta["size"])
    mean, std = IMAGENET if normalization == "imagenet" else (stored.meta["mean"], stored.meta["std"])
    if len(mean) != stored.meta["channels"]:
        raise ValueError(f"the normalization 'imagenet' is of RGB images, and those of {name!r} are gray; use 'train'.")
    splits = {
        split: Images(stored, np.flatnonzero(stored.table["split"] == i), size, tuple(mean), tuple(std), chosen)
        for i, split in enumerate(SPLITS)
    }
    return ImageData(name, stored, size, normalization, chosen, **splits)


def common_size(name: str, size: list[int] | None) -> int:
    if size is None or size[0] != size[1]:
        found = "have several sizes" if size is None else f"are {size[0]} x {size[1]}, no squares"
        raise ValueError(f"the images of {name!r} {found}; give the side to bring them to, image_size=.")
    return size[0]


def check_broken(name: str, broken: list[dict[str, str]], total: int, most: float) -> None:
    if len(broken) > most * total:
        first = broken[0]
        raise ValueError(
            f"{name!r} has {len(broken)} broken images of {total}, more than {100 * most:g}%; the first is "
            f"{first['name']} ({first['reason']}). Repair or remove them, or allow more: prepare_images(most_broken=)."
        )


# --- writing --------------------------------------------------------------------------------------------------------


def write_images(
    folder: Path, name: str, pictures: Pictures, channels: int | None, most_broken: float, show: bool
) -> dict[str, Any]:
    """table.npy and images.bin of the images of a source; what meta.json says of them."""
    labels = pictures.labels()
    total = sum(map(len, labels.of.values()))
    rows: list[tuple[int, int, int, int, int]] = []
    broken: list[dict[str, str]] = []
    sizes: set[tuple[int, int]] = set()
    gray, encoded = True, folder / "encoded.bin"
    with (
        warnings.catch_warnings(),
        progress_bar(name, total, show) as advance,
        ThreadPoolExecutor(min(MOST_THREADS, cores())) as pool,
        atomic_write(encoded) as out,
    ):
        warnings.simplefilter("error", extra("PIL.Image", "images").DecompressionBombWarning)
        for some in chunks(pictures.read(labels), LOOKED_AT):
            for picture, seen in zip(some, pool.map(look, some), strict=True):
                if seen.wrong:
                    broken.append({"name": picture.name, "reason": seen.wrong})
                    check_broken(name, broken, total, most_broken)
                    continue
                assert picture.data
                gray &= seen.gray
                sizes.add(seen.size)
                split = SPLITS.index(picture.split)
                rows.append((out.tell(), len(picture.data), picture.label, split, key_of(picture.name)))
                out.write(picture.data)
            advance(len(some))
    channels = channels or (1 if gray else 3)
    table = np.array(rows, ROW)
    table["split"], made = divided(table["split"], table["key"])
    size = sizes.pop() if len(sizes) == 1 else None
    meta = {
        "revision": pictures.source.revision,
        "sha256": hashlib.sha256(
            f"{pictures.sha256()} {labels.classes}".encode() + table["label"].tobytes()
        ).hexdigest(),
        "classes": labels.classes,
        "channels": channels,
        "size": size,
        "decoded": False,
        "made": made,
        "broken": broken,
    }
    content = np.memmap(encoded, np.uint8, mode="r")
    if size and channels and len(table) * channels * size[0] * size[1] <= DECODED:
        with atomic_write(folder / "images.bin") as out:
            for row in table:
                pixels = decode(content[row["start"] : row["start"] + row["size"]].tobytes(), channels)
                out.write(pixels.tobytes())
        encoded.unlink()
        meta["decoded"] = True
    else:
        encoded.replace(folder / "images.bin")
    with atomic_write(folder / "table.npy") as out:
        np.save(out, table, allow_pickle=False)
    stored = Stored(folder, meta)
    train = np.flatnonzero(table["split"] == SPLITS.index("train"))
    mean, std = statistics(stored.image(int(i)) for i in train[:: -(-len(train) // STATISTICS)])
    return meta | {"mean": mean, "std": std}


def chunks(pictures: Iterator[Encoded], size: int) -> Iterator[list[Encoded]]:
    while some := list(islice(pictures, size)):
        yield some


def statistics(images: Iterable[Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of pixels from 0 to 1; every image counts the same."""
    moments = []
    for image in images:
        pixels = image.double().div(255).flatten(1)
        moments.append(torch.stack([pixels.mean(1), pixels.square().mean(1)]))
    mean, square = torch.stack(moments).mean(0)
    std = (square - mean.square()).clamp_min(0).sqrt()
    return mean.tolist(), torch.where(std > 0, std, 1.0).tolist()
