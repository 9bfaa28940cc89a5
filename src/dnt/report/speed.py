"""What a benchmark found -> the table, the numbers, the suggestion. No torch."""

from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median
from typing import Any

from rich.table import Table

from dnt.report.measured import Measured, paired_ratio
from dnt.settings import TrainSettings

PHASES = ("data", "forward", "backward", "optimizer", "logging")
HELD = ("weights", "gradients", "state", "activations", "peak", "before")


@dataclass(frozen=True)
class Combination:
    """What is timed."""

    placement: str
    optimizer: str
    precision: str
    compile: bool
    threads: int

    @classmethod
    def of(cls, cell: TrainSettings, threads: int) -> "Combination":
        return cls(cell.placement, cell.optimizer, cell.precision, cell.compile, threads)

    @property
    def name(self) -> str:
        return f"{self.placement} + {self.optimizer}, {self.precision}, {self.how}, {self.threads} threads"

    @property
    def how(self) -> str:
        return "compiled" if self.compile else "eager"


@dataclass(frozen=True)
class Benchmark:
    """Combinations in the order they were asked for, each with the seconds and the bytes of its steps.

    units, flops: tokens (or images) of a step, and floating-point operations (dnt.nn.flops).
    """

    settings: dict[str, Any]
    model: dict[str, Any]
    machine: dict[str, Any]
    unit: str
    units: int
    flops: int
    measured: dict[Combination, Measured]

    @cached_property
    def peaks(self) -> dict[tuple[str, int], float]:
        """Operations a second of matrix products by precision and threads: the best of all processes."""
        found: dict[tuple[str, int], float] = {}
        for way, measured in self.measured.items():
            key = way.precision, way.threads
            found[key] = max(found.get(key, 0.0), measured.end["matmul_flops"])
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Medians over the rounds; seconds of a step, operations a second, bytes."""
        first = next(iter(self.measured.values()))
        return [
            {
                **asdict(way),
                f"{self.unit}_per_s": self.units / measured.median("step"),
                "lowest": self.units / max(found["step"] for found in measured.rounds),
                "highest": self.units / min(found["step"] for found in measured.rounds),
                "step": measured.median("step"),
                "to_first": paired_ratio(measured, first, "step"),
                "phases": {name: measured.median(name) for name in PHASES},
                "flops_per_s": self.flops / measured.median("step"),
                "matmul_flops": self.peaks[way.precision, way.threads],
                "share_of_matmul": self.flops / measured.median("step") / self.peaks[way.precision, way.threads],
                "bytes": measured.end["bytes"],
            }
            for way, measured in self.measured.items()
        ]

    def as_json(self) -> dict[str, Any]:
        """The rows, with what they are of and every round."""
        rounds = [measured.rounds for measured in self.measured.values()]
        rows = [row | {"rounds": found} for row, found in zip(self.rows(), rounds, strict=True)]
        what = {name: getattr(self, name) for name in ("settings", "model", "machine", "unit", "units", "flops")}
        return what | {"rows": rows}

    def table(self) -> Table:
        """What a step takes, for a terminal."""
        columns = (f"{self.unit}/s", "lowest", "highest", "ms a step", "to the first", *PHASES, "GFLOP/s", "of matmul")
        table = Table("", *columns, caption=f"{self.shape}; {self.machine['device']}")
        for way, row in zip(self.measured, self.rows(), strict=True):
            table.add_row(
                self.label(way),
                *(f"{row[name]:,.0f}" for name in (f"{self.unit}_per_s", "lowest", "highest")),
                *(f"{1000 * row['step']:,.1f}", f"{row['to_first']:.3f}"),
                *(f"{1000 * seconds:,.1f}" for seconds in row["phases"].values()),
                *(f"{row['flops_per_s'] / 1e9:,.0f}", f"{row['share_of_matmul']:.0%}"),
            )
        return table

    def memory_table(self) -> Table:
        """What it holds, in MiB."""
        before = "of it before the model"
        table = Table(
            "MiB", *HELD[:-1], before, caption="peak: of the process; activations: saved for the backward pass"
        )
        for way, measured in self.measured.items():
            held = measured.end["bytes"]
            table.add_row(self.label(way), *(f"{held[name] / 2**20:,.1f}" for name in HELD))
        return table

    def label(self, way: Combination) -> str:
        """In what it differs from the others; placement and optimizer always."""
        varied = [
            name for name in ("precision", "compile", "threads") if len({getattr(w, name) for w in self.measured}) > 1
        ]
        words = {"precision": way.precision, "compile": way.how, "threads": f"{way.threads} threads"}
        return ", ".join([f"{way.placement} + {way.optimizer}", *(words[name] for name in varied)])

    @property
    def shape(self) -> str:
        """Of the model and its batch, in words."""
        of = self.model
        reads = f"context {of['context']}" if "context" in of else f"{of['image_size']} pixels"
        ways = {f"{way.precision}, {way.how}" for way in self.measured}
        how = f", {ways.pop()}" if len(ways) == 1 else ""
        batch = f"batch {self.settings['batch_size']}"
        return f"{self.settings['model']}: {of['depth']} x {of['dim']} x {of['heads']} heads, {reads}, {batch}{how}"

    @property
    def suggestion(self) -> str:
        """The fastest as options of `dnt train`, against the first; nothing is changed by it."""
        ways = list(self.measured)
        first = ways[0]
        gains = {way: median(self.gain(way)) for way in ways}
        best = max(gains, key=gains.__getitem__)
        if best == first:
            return f"The first is the fastest: {first.name}."
        threads = f"OMP_NUM_THREADS={best.threads} " if best.threads != first.threads else ""
        eager = "" if best.compile else " --no-compile"
        return (
            f"Fastest: {threads}dnt train --precision {best.precision}{eager} ({best.name}), {gains[best]:.2f} times "
            f"as fast as the first ({first.name}). Nothing was changed; another precision computes other numbers."
        )

    def gain(self, way: Combination) -> list[float]:
        """How many times as fast as the first, in each round."""
        first = next(iter(self.measured.values()))
        return [a["step"] / b["step"] for a, b in zip(first.rounds, self.measured[way].rounds, strict=True)]
