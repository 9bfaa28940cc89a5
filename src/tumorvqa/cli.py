"""The command line: parse, call one public function, print one result."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dnt.lookup import lookup

Format = Literal["mc", "free"]


def demo(
    out: tyro.conf.Positional[Path] = Path("tumorvqa-demo"),
    cases: int = 96,
    workers: int = 2,
    seed: int = 0,
    rules: str = "kb-v2",
) -> None:
    """Phantoms, measurements, questions, split, baselines, scores, page: the whole benchmark on made-up patients."""
    result = import_module("tumorvqa.demo").demo(out, cases=cases, workers=workers, seed=seed, rules=rules)
    for table in result.tables():
        console().print(table)
    for line in result.summary:
        print(line)
    print(f"page: {result.page}")


def phantom(out: tyro.conf.Positional[Path], count: int = 4, seed: int = 0, workers: int = 1) -> None:
    """Write phantoms with their analytic truth, as a folder of AbdomenAtlas cases."""
    for path in import_module("tumorvqa.demo").write_phantoms(out, count, seed, workers):
        print(path)


def insert(
    case: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    organ: str = "liver",
    kind: str = "tumor",
    diameter_mm: float = 24.0,
    hu: float = 5.0,
    labels: Path | None = None,
    memory_gb: float = 4.0,
) -> None:
    """Put a ball of a lesion into a real CT, where its organ has most room; OUT is the folder of the new case."""
    print(
        import_module("tumorvqa.inserting").insert_into(
            files(case, labels), out, organ, kind, diameter_mm, hu, memory_gb
        )
    )


def scan(folder: tyro.conf.Positional[Path]) -> None:
    """List the cases of a folder: what layout each has, and how many masks."""
    table = Table("case", "layout", "masks", "label maps", "table")
    for found in import_module("tumorvqa.readers.folders").find_cases(folder):
        table.add_row(
            found.id, found.layout, str(len(found.masks)), str(len(found.maps)), "yes" if found.meta else "no"
        )
    console().print(table)


def doctor(case: tyro.conf.Positional[Path], labels: Path | None = None, memory_gb: float = 4.0) -> None:
    """Say in words what is right and wrong with a case; exit status 2 if it cannot be measured."""
    remarks = import_module("tumorvqa.doctor").doctor(files(case, labels), memory_gb)
    for remark in remarks:
        print(f"{remark.level:8} {remark.text}")
    if faults := sum(remark.level == "fault" for remark in remarks):
        raise ValueError(f"{case.name} cannot be measured: {faults} fault{'s' * (faults > 1)}, see above.")


def measure(
    folder: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path], workers: int = 1, memory_gb: float = 4.0
) -> None:
    """Measure every case of a folder; goes on where it stopped, and sets aside what cannot be measured."""
    work = import_module("tumorvqa.work")
    cases = import_module("tumorvqa.readers.folders").find_cases(folder)
    results = work.measure_all(cases, out, workers, import_module("tumorvqa.sets").salt_of(out), memory_gb)
    faults = [result for result in results if result.fault is not None]
    for result in faults:
        print(f"set aside: {result.case}: {result.fault}")
    print(f"measured {len(results) - len(faults)} of {len(results)} cases into {out}")


def rules(name: tyro.conf.Positional[str] = "kb-v2") -> None:
    """Show a rule pack: thresholds, where they come from, and which nobody has checked."""
    pack = import_module("tumorvqa.rules.packs").load_pack(name)
    table = Table("rule", "quantity", "classes", "holds in", "source", title=f"{pack.name} {pack.version}")
    for rule in pack.rules.values():
        cuts = [f"{cut:g}" for cut in rule.cuts]
        classes = " | ".join(f"{c or '-'}" for pair in zip(rule.classes, [*cuts, ""], strict=True) for c in pair if c)
        source = f"{rule.source}{' (unverified)' if rule.unverified else ''}{'; ' + rule.note if rule.note else ''}"
        row = (rule.name, rule.quantity, classes, ", ".join(rule.phases) or "any phase", source)
        table.add_row(*map(escape, row))
    console().print(table)


def ask(
    out: tyro.conf.Positional[Path],
    rules: str = "kb-v2",
    seed: int = 0,
    balanced: bool = True,
    train: float = 0.8,
    test: float = 0.1,
    by_source: bool = False,
) -> None:
    """Ask questions of measured cases, split them by patient; writes questions.jsonl and questions.parquet."""
    result = import_module("tumorvqa.sets").ask_into(out, rules, seed, balanced, train, test, by_source)
    console().print(result.table())
    print(result.leaks.table())


def convert(source: tyro.conf.Positional[Path], target: tyro.conf.Positional[Path], format: str = "") -> None:
    """Write questions in another format: .jsonl, .parquet, the authors' .csv (v1) or .json (v2).

    In a set's folder the authors' formats also get spacing, shape, sex, age and contrast.
    """
    formats, sets = import_module("tumorvqa.formats"), import_module("tumorvqa.sets")
    questions = formats.read_questions(source)
    measured = sets.measured_in(source.parent) if (source.parent / "measured.json").exists() else []
    formats.write_questions(target, questions, format or None, {case.case: case for case in measured})
    print(f"{len(questions)} questions: {target}")


def show(
    case: tyro.conf.Positional[Path],
    out: Path = Path("case.html"),
    labels: Path | None = None,
    questions: Path | None = None,
    predictions: tuple[Path, ...] = (),
    rules: str = "kb-v2",
    memory_gb: float = 4.0,
) -> None:
    """A page of one case: slices, masks, measurements, questions with trace and evidence, and what models said."""
    show_files = import_module("tumorvqa.showing").show_files
    print(f"page: {show_files(files(case, labels), out, questions, predictions, rules, memory_gb)}")


def baseline(
    name: tyro.conf.Positional[str],
    out: tyro.conf.Positional[Path],
    to: Path | None = None,
    free: bool = False,
    seed: int = 0,
    images: Path | None = None,
) -> None:
    """Let a baseline (`tumorvqa list`) answer the questions of a set; cross-validated by patient where it learns."""
    predictions = import_module("tumorvqa.baselines.table").run(name, out, free, seed, images)
    path = to or out / "predictions" / f"{name}.{'free' if free else 'mc'}.jsonl"
    import_module("tumorvqa.scoring.predictions").write_predictions(path, predictions)
    print(f"{len(predictions)} answers: {path}")


def score(
    questions: tyro.conf.Positional[Path],
    predictions: tyro.conf.Positional[Path],
    format: Format = "mc",
    model: str = "",
    split: str = "",
    strict_authors: bool = False,
    resamples: int = 2000,
    key: Path | None = None,
    strata: bool = False,
    to: Path | None = None,
) -> None:
    """Score answers: by group, micro and macro, with intervals over cases; --strict-authors: as the authors score."""
    sets = import_module("tumorvqa.sets")
    scores = sets.score_files(questions, predictions, format, model, split, strict_authors, resamples, key)
    if to is not None:
        sets.write_scores(to, scores)
    console().print(sets.scores_table(scores))
    if strata:
        measured = sets.measured_in(questions.parent) if (questions.parent / "measured.json").exists() else []
        console().print(
            sets.strata_table(scores, import_module("tumorvqa.formats").read_questions(questions), measured)
        )


def compare(
    questions: tyro.conf.Positional[Path],
    a: tyro.conf.Positional[Path],
    b: tyro.conf.Positional[Path],
    format: Format = "mc",
    split: str = "",
) -> None:
    """Compare two models on the same questions: paired bootstrap over cases, McNemar's test."""
    print(import_module("tumorvqa.sets").compare_files(questions, a, b, format, split).table())


def leaderboard(scores: tyro.conf.Positional[tuple[Path, ...]] = (), format: Format = "mc") -> None:
    """Scores (files of `tumorvqa score --to`) beside the rows of the benchmark's authors."""
    read = import_module("tumorvqa.sets").read_scores
    console().print(import_module("tumorvqa.scoring.leaderboard").leaderboard([read(path) for path in scores], format))


def report(out: tyro.conf.Positional[Path]) -> None:
    """Write the page of a set from its questions and scores: distributions, shortcuts, leaderboard, failures."""
    print(f"page: {import_module('tumorvqa.sets').report_of(out)}")


def list_tables() -> None:
    """Subtypes, rule packs and baselines."""
    table = Table("subtype", "group", "for example")
    asking = import_module("tumorvqa.asking.ask")
    for row in asking.SUBTYPES.values():
        table.add_row(row.name, row.group, asking.phrased(row.name, row.about[0], Random(0)))
    console().print(table)
    print("rule packs:", ", ".join(import_module("tumorvqa.rules.packs").PACKS))
    baselines = Table("baseline", "what it sees")
    for name, text in import_module("tumorvqa.baselines.table").BASELINES.items():
        baselines.add_row(name, text)
    console().print(baselines)


def files(case: Path, labels: Path | None) -> Any:
    """A folder with a ct.nii.gz, or with --labels a CT file and its label map or folder of masks."""
    folders = import_module("tumorvqa.readers.folders")
    if labels is not None:
        return folders.case_files(case, labels)
    found = folders.find_cases(case)
    if len(found) > 1:
        raise ValueError(f"{case} holds {len(found)} cases; name one of them, e.g. {case / found[0].id}.")
    return found[0]


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 160)


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "scan": scan,
    "doctor": doctor,
    "measure": measure,
    "ask": ask,
    "show": show,
    "baseline": baseline,
    "score": score,
    "compare": compare,
    "leaderboard": leaderboard,
    "report": report,
    "convert": convert,
    "phantom": phantom,
    "insert": insert,
    "rules": rules,
    "list": list_tables,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, 2 for bad input, 130 if stopped. SystemExit for --help and unknown options."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments and not arguments[0].startswith("-"):
            lookup(COMMANDS, arguments[0], "command")
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="tumorvqa",
            description="CT volumes and masks become measurements, questions, scored answers.",
            args=list(arguments),
        )
    except ImportError as error:
        return complain(f"this needs the package {error.name}: pip install 'dnt-torch[tumorvqa]'", 2)
    except (ValueError, OSError) as error:
        return complain(error, 2)
    except KeyboardInterrupt:
        return complain("interrupted; the same command goes on from here", 130)
    return 0


def complain(message: object, status: int) -> int:
    print(f"tumorvqa: {message}", file=sys.stderr)
    return status


def entry() -> None:
    """`tumorvqa` in a shell."""
    sys.exit(main())
