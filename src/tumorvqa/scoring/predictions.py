"""Predictions as JSON lines: {"qid", "raw", "latency", "tokens"}. A file grows by lines, so that a run can go on."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from dnt.files import atomic_write
from tumorvqa.question import Prediction


def read_predictions(path: Path) -> list[Prediction]:
    """In the order of the file. An answer of None (an error) is forgotten if the same question is tried again below."""
    decoder = msgspec.json.Decoder(Prediction)
    predictions: list[Prediction] = []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            predictions.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {number} is no prediction ({error}); delete the line to go on.") from None
    last = {prediction.qid: i for i, prediction in enumerate(predictions)}
    return [row for i, row in enumerate(predictions) if row.raw is not None or last[row.qid] == i]


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    with atomic_write(path) as file:
        file.writelines(msgspec.json.encode(prediction) + b"\n" for prediction in predictions)


@contextmanager
def predictions_log(path: Path) -> Iterator[tuple[set[str], Callable[[Prediction], None]]]:
    """Qids that `path` answers already (errors are to be tried again), and a function that adds a line. A last line
    that a killed run left unfinished is cut off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        whole = path.read_bytes().rfind(b"\n") + 1
        if whole < path.stat().st_size:
            with path.open("rb+") as torn:
                torn.truncate(whole)
    done = {row.qid for row in read_predictions(path) if row.raw is not None} if path.exists() else set()
    with path.open("ab", buffering=0) as file:

        def add(prediction: Prediction) -> None:
            file.write(msgspec.json.encode(prediction) + b"\n")

        yield done, add
