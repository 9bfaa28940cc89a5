"""What a name of image data means: encoded images and their labels, in splits, and how one is decoded. No torch.

| name                                      | what                                                                    |
|-------------------------------------------|-------------------------------------------------------------------------|
| digits                                    | scikit-learn's 1797 handwritten digits, 8 x 8, gray                     |
| a folder CLASS/*, or SPLIT/CLASS/*        | images; the class is the folder's name                                  |
| *.parquet, or a folder of them            | a column of encoded images and one of labels, as `datasets` writes them |
| .tar, .tar.gz, .tgz, .tar.xz, .zip        | as the folder in it                                                     |
| OWNER/NAME[:CONFIG][@REVISION]            | a dataset of the Hugging Face hub, of parquet files                     |

Nothing is unpickled: other files beside images or parquet files are not opened.
"""
# H height, W width, C channels (1 gray, 3 RGB)

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dnt.data import hub
from dnt.data.archives import ARCHIVES, unpacked
from dnt.data.cache import cache_root
from dnt.data.pieces import SPLITS, open_binary, readable
from dnt.data.sources import (
    SPLIT_NAMES,
    Source,
    as_names,
    by_split_name,
    check_no_url,
    check_train,
    digest,
    files_below,
    format_of,
    no_data,
    remote_source,
    state_of,
)
from dnt.extras import extra

IMAGE_NAMES, LABEL_NAMES = ("image", "img"), ("label", "fine_label")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
READERS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # of PIL's; others start programs, EPS for one
MOST_PIXELS = 89_478_485  # of one image, PIL's own limit: 256 MiB in RGB
MOST_CLASSES = 1 << 20
ROWS = 64  # of parquet read at a time
DEEP = ("I", "F")  # PIL's modes of more than 8 bits a channel begin so


class Encoded(NamedTuple):
    """An encoded image (None if the source lacks it), the number of its class (-1: none), and what to call it."""

    split: str
    name: str
    label: int
    data: bytes | None


@dataclass(frozen=True)
class Labels:
    """The names of the classes, and the class of every image of every split in order, (n,) int64, -1 for none."""

    classes: tuple[str, ...]
    of: dict[str, np.ndarray]


# --- which files ----------------------------------------------------------------------------------------------------


def find_pictures(name: str, image: str | None = None, label: str | None = None) -> "Pictures":
    """The images of a name; image and label: columns of parquet. ValueError if there is no such data."""
    if name == "digits":
        return Pictures(Source("digits", {}, f"digits {extra('sklearn', 'images').__version__}"), Path())
    check_no_url(name)
    root = Path(name)
    if root.is_file() and root.name.endswith(ARCHIVES):
        root = unpacked(root, cache_root())
    if root.is_dir():
        return Pictures(folder_source(name, root), root, image, label)
    if root.is_file():
        if format_of(root) != "parquet":
            raise ValueError(f"{name!r} is no image data; give a folder of images, a parquet file, or an archive.")
        return Pictures(Source("parquet", {"train": [name]}, state_of(root, [root])), root.parent, image, label)
    if hub.ID.fullmatch(name) and not root.parent.exists() and not root.suffix:
        source = remote_source(name)
        if source.format != "parquet":
            raise ValueError(f"{name!r} is not made of parquet files; its revision @refs/convert/parquet may be.")
        return Pictures(source, Path(), image, label)
    raise no_data(name, ["digits"], "a folder of images, a parquet file or a folder of them, 'digits'")


def folder_source(name: str, root: Path) -> Source:
    """Of a folder of images (format "folder"; the class is the folder below the split's) or of parquet files."""
    files = files_below(root, stdlib=False)
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    tables = [path for path in files if format_of(path) == "parquet"]
    if images and tables:
        raise ValueError(f"{name!r} holds images and parquet files ({tables[0].name}); move one kind away.")
    if tables:
        return Source("parquet", as_names(by_split_name(name, root, tables)), state_of(root, tables))
    if not images:
        raise ValueError(f"{name!r} holds no images ({', '.join(sorted(SUFFIXES))}) and no parquet files.")
    splits = names_splits(name, root, images)
    groups: dict[str, list[Path]] = {}
    for path in images:
        first, *within = path.relative_to(root).parts
        if len(within) < 1 + splits:
            raise ValueError(f"{path} lies in no folder of a class; an image belongs to the class of its folder.")
        groups.setdefault(SPLIT_NAMES[first] if splits else "train", []).append(path)
    state = ("splits " if splits else "classes ") + state_of(root, images)
    return Source("folder", as_names(check_train(name, groups)), state)


def names_splits(name: str, root: Path, images: list[Path]) -> bool:
    """Whether the folders in the root are splits (train, ...), with the classes in them, or the classes themselves.

    A class may be called "train" (of CIFAR-100, one is): it holds its images itself.
    """
    below = {path.relative_to(root).parts for path in images}
    named = {parts[0] for parts in below if len(parts) > 1 and parts[0] in SPLIT_NAMES}
    if not named or any(len(parts) == 2 and parts[0] in named for parts in below):
        return False
    others = {parts[0] for parts in below} - named
    if others:
        raise ValueError(
            f"{name!r} has folders of splits ({', '.join(sorted(named))}), but {min(others)!r} is none; move it away."
        )
    return True


# --- labels and encoded images --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """The encoded images of a source; what they are called begins at the root."""

    source: Source
    root: Path
    image: str | None = None
    label: str | None = None

    @property
    def state(self) -> str:
        """Changes whenever the images or their labels may."""
        return f"{self.source.format} {self.image} {self.label} {self.source.state}"

    def sha256(self) -> str:
        """Of one file its own, of several that of their contents each followed by NUL; of digits, of the images."""
        if self.source.format == "digits":
            return hashlib.sha256(b"".join(data for _, data in digit_images())).hexdigest()
        return digest(self.source)

    def labels(self) -> Labels:
        """Read without any image; a split without a single label (a hidden test) is left out."""
        reader = {"digits": digit_labels, "folder": self.folder_labels, "parquet": self.parquet_labels}
        found = reader[self.source.format]()
        of = {split: found.of[split] for split in SPLITS if split in found.of and (found.of[split] >= 0).any()}
        if "train" not in of:
            raise ValueError("no image to train on has a label.")
        return Labels(found.classes, of)

    def read(self, labels: Labels) -> Iterator[Encoded]:
        """Every image of the splits that have labels, train first."""
        for split, numbers in labels.of.items():
            for number, (name, data) in zip(numbers, self.images(split), strict=True):
                yield Encoded(split, name, int(number), data)

    def images(self, split: str) -> Iterator[tuple[str, bytes | None]]:
        if self.source.format == "digits":
            yield from digit_images()
            return
        for file in self.source.files[split]:
            if self.source.format == "folder":
                yield self.called(file), Path(file).read_bytes()
            else:
                yield from self.parquet_images(file)

    def called(self, file: str) -> str:
        """The path in the root; of a remote file its name alone."""
        path = Path(file)
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name

    def folder_labels(self) -> Labels:
        depth = self.source.state.startswith("splits ")
        parts = {split: [self.called(file).split("/") for file in files] for split, files in self.source.files.items()}
        return numbered({split: [names[depth] for names in some] for split, some in parts.items()}, None)

    def parquet_labels(self) -> Labels:
        parquet = extra("pyarrow.parquet", "images")
        found: dict[str, list[list]] = {}
        names: list[str] | None = None
        for split, files in self.source.files.items():
            for location in files:
                with readable(location), open_binary(location) as file:
                    schema = parquet.read_schema(file)
                column = column_of(location, schema.names, self.label, LABEL_NAMES, "label")
                with readable(location), open_binary(location) as file:
                    values = parquet.read_table(file, columns=[column]).column(0).to_pylist()
                wrong = next((v for v in values if v is not None and type(v) not in (int, str)), None)
                if wrong is not None:
                    raise ValueError(
                        f"{location}: column {column!r} holds {str(wrong)[:40]!r}, no number or name of a class; "
                        "choose another with label=."
                    )
                names = names or class_names(schema.metadata, column)
                found.setdefault(split, []).append(values)
        return numbered({split: list(chain.from_iterable(parts)) for split, parts in found.items()}, names)

    def parquet_images(self, location: str) -> Iterator[tuple[str, bytes | None]]:
        arrow, parquet = extra("pyarrow", "images"), extra("pyarrow.parquet", "images")
        row = 0
        with readable(location), open_binary(location) as source:
            file = parquet.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20)
            schema = file.schema_arrow
        column = column_of(location, schema.names, self.image, IMAGE_NAMES, "image")
        kind = schema.field(column).type
        nested = arrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if nested:
            kind = kind.field("bytes").type
        if not (arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind)):
            raise ValueError(
                f"{location}: column {column!r} holds {kind}, no encoded images; choose another with image=."
            )
        with open_binary(location) as source:
            with readable(location):
                file = parquet.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20)
                batches = file.iter_batches(batch_size=ROWS, columns=[column], use_threads=False)
            while True:
                with readable(location):
                    batch = next(batches, None)
                if batch is None:
                    return
                images = batch.column(0)
                if nested:
                    images = extra("pyarrow.compute", "images").struct_field(images, "bytes")
                for data in images.to_pylist():
                    yield f"{self.called(location)}, row {row}", data
                    row += 1


def column_of(location: str, there: list[str], asked: str | None, known: tuple[str, ...], option: str) -> str:
    """The column asked for, else the first of the known ones; ValueError naming those that are there."""
    column = asked or next((name for name in known if name in there), known[0])
    if column not in there:
        raise ValueError(f"{location}: no column {column!r}; there are: {', '.join(there)}. Choose one with {option}=.")
    return column


def class_names(metadata: dict[bytes, bytes] | None, column: str) -> list[str] | None:
    """The names of the classes that `datasets` keeps in the schema of a parquet file, if it does."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return names if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None


def numbered(values: dict[str, list], names: list[str] | None) -> Labels:
    """Labels that are numbers as they are, called by the given names; those that are names, in alphabetical order."""
    every = {value for some in values.values() for value in some if value is not None}
    if any(isinstance(value, str) for value in every):
        known = sorted(str(value) for value in every)
        number = {name: i for i, name in enumerate(known)}
        of = {split: [-1 if v is None else number[str(v)] for v in some] for split, some in values.items()}
    else:
        most = max(every, default=-1)
        if most >= (len(names) if names else MOST_CLASSES):
            raise ValueError(f"a label is {most}, beyond the {len(names) if names else MOST_CLASSES} classes.")
        known = names or [str(i) for i in range(most + 1)]
        of = {split: [-1 if v is None else max(-1, v) for v in some] for split, some in values.items()}
    return Labels(tuple(known), {split: np.array(some, np.int64) for split, some in of.items()})


def digit_labels() -> Labels:
    digits = extra("sklearn.datasets", "images").load_digits()
    return Labels(tuple(map(str, digits.target_names)), {"train": digits.target.astype(np.int64)})


def digit_images() -> Iterator[tuple[str, bytes]]:
    """As PGM files, whose content is the pixels: scikit-learn's 0..16 spread over 0..255."""
    for i, image in enumerate(extra("sklearn.datasets", "images").load_digits().images):
        yield f"digit {i}", b"P5 8 8 255\n" + (image * 255 / 16).round().astype(np.uint8).tobytes()


# --- decoding -------------------------------------------------------------------------------------------------------


def opened(data: bytes) -> Any:
    """The decoded, upright PIL image; any exception, or ValueError for one that is refused."""
    images = extra("PIL.Image", "images")
    image = images.open(io.BytesIO(data), formats=READERS)
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS:,}: a decompression bomb?")
    if image.mode.startswith(DEEP):
        raise ValueError(f"more than 8 bits a channel (mode {image.mode}); convert it")
    image.load()
    return extra("PIL.ImageOps", "images").exif_transpose(image)


def decode(data: bytes, channels: int) -> np.ndarray:
    """The pixels of an encoded image, (C, H, W) uint8, gray or RGB; transparency is dropped."""
    pixels = np.asarray(opened(data).convert("L" if channels == 1 else "RGB"))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


class Seen(NamedTuple):
    """What one look at an image gives: its size and whether it is gray, or why it cannot be used."""

    size: tuple[int, int] = (0, 0)
    gray: bool = False
    wrong: str = ""


def look(encoded: Encoded) -> Seen:
    """Decodes an image once, to know that it can be."""
    if encoded.label < 0:
        return Seen(wrong="it has no label")
    if not encoded.data:
        return Seen(wrong="it is empty")
    try:
        image = opened(encoded.data)
    except MemoryError:
        raise
    except Exception as error:  # of any of PIL's readers
        return Seen(wrong=" ".join(str(error).split())[:200] or type(error).__name__)
    return Seen((image.height, image.width), image.mode in ("1", "L", "LA"))


# --- splits ---------------------------------------------------------------------------------------------------------

HELD_OUT, MOST_HELD_OUT = 0.1, 5000  # share of train, and images, that a split that is lacking takes


def divided(splits: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    """The split of every image, (N,) uint8, and which splits are not those of the source, in words.

    splits: (N,) uint8, those of the source; keys: (N,) uint64 hashes of the images' names. Of given splits the last,
    test before validation, is the test. Validation and test that are lacking are cut out of train: the images with the
    smallest keys, which is a fixed permutation.
    """
    splits, made = splits.copy(), {}
    train, validation, test = range(3)
    if (splits == validation).any() and not (splits == test).any():
        splits[splits == validation] = test
        made["test"] = "the validation of the source"
    images = np.flatnonzero(splits == train)
    held = max(1, min(int(HELD_OUT * len(images)), MOST_HELD_OUT))
    lacking = [split for split in (test, validation) if not (splits == split).any()]
    if len(images) <= held * len(lacking):
        raise ValueError(f"there are {len(images)} images to train on; that is too few.")
    images = images[np.argsort(keys[images], kind="stable")]
    for split in lacking:
        splits[images[:held]], images = split, images[held:]
        made[SPLITS[split]] = f"{held} images of train"
    return splits, made


def key_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode(errors="replace")).digest()[:8], "little")
