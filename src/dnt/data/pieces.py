"""A corpus in pieces that can be read, tokenized and stored one by one, in any order. No torch.

A piece is a row group of a parquet file, the JSON lines that begin in a range of bytes, a range of bytes of a text, or
several small texts. Which pieces there are depends on the files alone, and reading one takes some MiB of memory.
"""

import gzip
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dnt.extras import extra
from dnt.redact import redacted

SPLITS = ("train", "validation", "test")
PIECE = 1 << 22  # bytes of text or JSON lines in a piece
SLICE = 1 << 17  # characters, at most twice that, given to a tokenizer at a time
LONGEST = 1 << 24  # bytes of one document of JSON lines or parquet
BATCH = 1 << 22  # bytes of parquet decoded at a time
# Where a long text is cut: before a single space between two visible ASCII characters. GPT-2's tokens and those of the
# byte-level encodings after it end there in any case, so the cut changes none; nor does it fall into a character.
CUT = r"(?<=[!-~]) (?=[!-~])"
CUT_TEXT, CUT_BYTES = re.compile(CUT), re.compile(CUT.encode())


class Fragment(NamedTuple):
    """Some text of a split, and whether a document ends after it."""

    split: str
    text: str
    ends: bool


class TextSpan(NamedTuple):
    path: Path
    start: int
    stop: int
    ends: bool


@dataclass(frozen=True)
class TextPiece:
    """A range of a text file, or several whole small ones; bytes that are not UTF-8 become U+FFFD."""

    split: str
    spans: tuple[TextSpan, ...]

    @property
    def size(self) -> int:
        return sum(span.stop - span.start for span in self.spans)

    memory = size

    def fragments(self) -> Iterator[Fragment]:
        for path, start, stop, ends in self.spans:
            with path.open("rb") as file:
                file.seek(start)
                data = file.read(stop - start)
            yield Fragment(self.split, data.decode("utf-8", errors="replace"), ends)


@dataclass(frozen=True)
class LinesPiece:
    """The JSON lines that begin in bytes [start, stop) of a file, or all of a compressed one (stop is None)."""

    split: str
    location: str
    column: str
    start: int
    stop: int | None
    size: int
    memory = 4 * LONGEST  # the line, and its text at up to four bytes a character

    def fragments(self) -> Iterator[Fragment]:
        for offset, line in self.lines():
            if not line.strip():
                continue
            try:
                text = self.text_of(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{self.location}, line {self.number(offset)}: {error}") from None
            if text is not None:
                yield Fragment(self.split, text, True)

    def text_of(self, line: bytes) -> str | None:
        """The text of a line, None for null; ValueError saying what the line is instead."""
        if len(line) > LONGEST:
            raise ValueError(
                f"a document of more than {LONGEST >> 20} MiB; cut it into several, or give it as a text file."
            )
        try:
            row = json.loads(line)
        except ValueError as error:
            hint = "the file is one JSON array; write one object a line." if line.lstrip()[:1] == b"[" else "repair it."
            raise ValueError(f"broken JSON ({error}); {hint}") from None
        if not isinstance(row, dict):
            raise ValueError(f"a JSON {type(row).__name__}, not an object with a text; write one object a line.")
        check_column(row, self.column)
        text = row[self.column]
        if not isinstance(text, str | None):
            raise ValueError(
                f"column {self.column!r} holds {str(text)[:40]!r}, not a text; choose another with --column."
            )
        if text is None or text.isascii():
            return text
        return text.encode("utf-16-le", errors="surrogatepass").decode("utf-16-le", errors="replace")

    def lines(self) -> Iterator[tuple[int, bytes]]:
        with readable(self.location), open_unpacked(self.location) as file:
            offset = max(0, self.start - 1)
            file.seek(offset)
            while self.start and (skipped := file.readline(PIECE)):  # the line that the range before begins
                offset += len(skipped)
                if skipped.endswith(b"\n"):
                    break
            while self.stop is None or offset < self.stop:
                line = file.readline(LONGEST + 1)
                if not line:
                    return
                yield offset, line
                offset += len(line)

    def number(self, offset: int) -> int:
        """Of the line at an offset, from 1."""
        number = 1
        with open_unpacked(self.location) as file:
            while offset > 0 and (data := file.read(min(PIECE, offset))):
                number += data.count(b"\n")
                offset -= len(data)
        return number


@dataclass(frozen=True)
class RowGroup:
    """A row group of a parquet file; `splits` numbers the split of each row where it is not the file's."""

    split: str
    location: str
    column: str
    footer: Any
    group: int
    splits: np.ndarray | None = None

    @property
    def rows(self) -> int:
        return self.footer.row_group(self.group).num_rows

    @property
    def size(self) -> int:
        """Bytes of the column before compression."""
        group = self.footer.row_group(self.group)
        columns = (group.column(i) for i in range(group.num_columns))
        return sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == self.column)

    @property
    def memory(self) -> int:
        """About four times its largest page; writers look at the size of a page every 1024 rows or more often."""
        return 4 * min(self.size, PIECE + 1024 * self.size // max(1, self.rows))

    def fragments(self) -> Iterator[Fragment]:
        row = 0
        for texts in self.batches():
            for data in texts:
                split = self.split if self.splits is None else SPLITS[self.splits[row]]
                row += 1
                if data is None:
                    continue
                if len(data) > LONGEST:
                    raise ValueError(
                        f"{self.location}, row {row - 1} of row group {self.group}: a document of more than "
                        f"{LONGEST >> 20} MiB; cut it into several, or give it as a text file."
                    )
                yield Fragment(split, data.decode("utf-8", errors="replace"), True)

    def batches(self) -> Iterator[list[bytes | None]]:
        """The texts, some at a time; no page of the file stays in memory longer than it must."""
        arrow, parquet = extra("pyarrow"), extra("pyarrow.parquet")
        rows = max(1, min(1024, BATCH * self.rows // max(1, self.size)))
        with readable(self.location), open_binary(self.location) as source:
            file = parquet.ParquetFile(source, metadata=self.footer, pre_buffer=False, buffer_size=1 << 20)
            columns = {"columns": [self.column], "use_threads": False}
            for batch in file.iter_batches(batch_size=rows, row_groups=[self.group], **columns):
                yield batch.column(0).cast(arrow.large_binary()).to_pylist()


Piece = TextPiece | LinesPiece | RowGroup


# --- which pieces there are -----------------------------------------------------------------------------------------


def text_pieces(split: str, paths: list[Path], separated: bool) -> Iterator[TextPiece]:
    spans: list[TextSpan] = []
    room = PIECE
    for path in paths:
        size = path.stat().st_size
        for start, stop in pairwise([0, *cuts(path, size), size]):
            spans.append(TextSpan(path, start, stop, separated and stop == size))
            room -= stop - start
            if room <= PIECE // 2:
                yield TextPiece(split, tuple(spans))
                spans, room = [], PIECE
    if spans:
        yield TextPiece(split, tuple(spans))


def cuts(path: Path, size: int) -> Iterator[int]:
    """Offsets about a piece apart at which a text file may be cut."""
    if size <= PIECE:
        return
    with path.open("rb") as file:
        for offset in range(PIECE, size - PIECE // 2, PIECE):
            file.seek(offset)
            window = file.read(1 << 16)
            cut = (
                CUT_BYTES.search(window)
                or re.search(rb"(?<=\n)[^\x80-\xbf]", window)
                or re.search(rb"[^\x80-\xbf]", window)
            )
            yield offset + (cut.start() if cut else 0)


def lines_pieces(split: str, location: str, column: str) -> Iterator[LinesPiece]:
    with open_binary(location) as file:
        size = file.seek(0, 2)
    if location.endswith(".gz"):
        yield LinesPiece(split, location, column, 0, None, size)
        return
    for start in range(0, size, PIECE):
        stop = min(size, start + PIECE)
        yield LinesPiece(split, location, column, start, stop, stop - start)


def row_groups(split: str, location: str, column: str) -> list[RowGroup]:
    """The row groups of a parquet file; ValueError if it is none or has no such column of text."""
    arrow, parquet = extra("pyarrow"), extra("pyarrow.parquet")
    with readable(location), open_binary(location) as file:
        footer = parquet.read_metadata(file)
    schema = footer.schema.to_arrow_schema()
    try:
        check_column(schema.names, column)
    except ValueError as error:
        raise ValueError(f"{location}: {error}") from None
    kind = schema.field(column).type
    kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
    texts = (arrow.types.is_string, arrow.types.is_large_string, arrow.types.is_binary, arrow.types.is_large_binary)
    if not any(is_text(kind) for is_text in texts):
        raise ValueError(f"{location}: column {column!r} holds {kind}, not text; choose another with --column.")
    return [RowGroup(split, location, column, footer, group) for group in range(footer.num_row_groups)]


def check_column(columns: Any, column: str) -> None:
    if column not in columns:
        known = ", ".join(columns) or "none at all"
        images = ", or --images for images" if "image" in columns else ""
        raise ValueError(f"no column {column!r}; there are: {known}. Choose one with --column{images}.")


# --- reading --------------------------------------------------------------------------------------------------------


def slices(text: str) -> Iterator[str]:
    """A text in parts of at most 2 SLICE characters: tokenizers take time and memory for what they get at once."""
    start = 0
    while len(text) - start > 2 * SLICE:
        cut = CUT_TEXT.search(text, start + SLICE, start + 2 * SLICE)
        stop = cut.start() if cut else start + 2 * SLICE
        yield text[start:stop]
        start = stop
    yield text[start:]


def open_binary(location: str) -> BinaryIO:
    """A local file, or one of the hub, of which only what is read is downloaded."""
    if "://" not in location:
        return open(location, "rb")
    return extra("fsspec").open(location, "rb").open()


@contextmanager
def open_unpacked(location: str) -> Iterator[BinaryIO]:
    with open_binary(location) as file:
        if location.endswith(".gz"):
            with gzip.open(file) as unpacked:
                yield unpacked  # type: ignore[misc]
        else:
            yield file


@contextmanager
def readable(location: str) -> Iterator[None]:
    """What any reader (arrow, gzip, zlib, the hub) says of a file that cannot be read, in one line with its name."""
    try:
        yield
    except (MemoryError, PermissionError):
        raise
    except Exception as error:
        said = redacted(" ".join(str(error).split()))[:200] or type(error).__name__
        if "://" in location:
            raise ConnectionError(
                f"reading {redacted(location)} failed ({said}); the same command continues."
            ) from error
        raise ValueError(f"{location} cannot be read ({said}); it is truncated or of another format.") from error
