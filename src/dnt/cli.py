"""The command line: parse, call one public function, print one result. Imports torch only where it is used."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from dnt.interrupt import ProcessLost
from dnt.lookup import lookup
from dnt.recipes import RECIPES
from dnt.redact import redacted
from dnt.settings import (
    AblateSettings,
    BenchSettings,
    CompareSettings,
    InspectSettings,
    Recipe,
    SampleSettings,
    TrainSettings,
    TuneSettings,
)


def train(settings: TrainSettings) -> None:
    """Train one model into a run folder. With --recipe NAME: the options of a row of `dnt list`, and those given."""
    if settings.dry_run:
        print(import_module("dnt.dryrun").plan(settings))
        return
    run = import_module("dnt.train").train(settings)
    if not import_module("dnt.parallel").is_first():
        return
    end = run.end
    print(f"validation {end['validation']:.4f}  test {end['test']:.4f}  {run.path}")


def compare(settings: CompareSettings) -> None:
    """Train placements x optimizers x seeds on the same data; one table, one page."""
    result = import_module("dnt.experiments.compare").compare(settings)
    show(result)


def tune(settings: TuneSettings) -> None:
    """Tune every cell on the same budget, then run the winners on fresh seeds; one table, one page."""
    show(import_module("dnt.experiments.tune").tune(settings))


def ablate(settings: AblateSettings) -> None:
    """Tune S1 to S5, each norm alone and each left out; one table of losses, one of gradients, one page."""
    result = import_module("dnt.experiments.ablate").ablate(settings)
    console().print(import_module("dnt.report.gradients").table(result))
    show(result)


def bench(settings: BenchSettings) -> None:
    """Time training steps of one model in every combination, side by side; two tables."""
    result = import_module("dnt.experiments.benchmark").benchmark(settings)
    console().print(result.table())
    console().print(result.memory_table())
    if settings.suggest:
        print(result.suggestion)


def inspect(what: tyro.conf.Positional[str], settings: InspectSettings) -> None:
    """See why momentum SGD can or cannot train a model; one page, and its numbers as parquet.

    WHAT: a run, a folder of transformers, a named size, timm:NAME, or MODULE:FUNCTION that returns (model, batches,
    loss_fn).
    """
    result = import_module("dnt.inspection").inspect_model(what, settings)
    console().print(result.table())
    if settings.statements:
        console().print(result.statements_table())
    for finding in result.findings():
        print(f"- {finding}")
    print(f"page: {result.page}")


def sample(run: tyro.conf.Positional[Path], settings: SampleSettings) -> None:
    """Continue a prompt with the model of a run."""
    print(import_module("dnt.sampling").sample(run, settings))


def data(
    name: tyro.conf.Positional[str] = "stdlib",
    images: bool = False,
    image_size: int | None = None,
    tokenizer: str = Recipe.tokenizer,
    column: str = Recipe.column,
    threads: int | None = None,
) -> None:
    """Prepare the tokens of a corpus, or with --images (not needed for "digits") images, and say what is in it."""
    images = images or name == "digits"
    of_text = {"tokenizer": tokenizer != Recipe.tokenizer, "column": column != Recipe.column, "threads": threads}
    for option, given in (of_text if images else {"image-size": image_size}).items():
        if given not in (False, None):
            reads = "images" if images else "text (without --images)"
            raise ValueError(f"--{option} says nothing to {reads}; drop it.")
    broken: list[dict[str, str]] = []
    if images:
        prepared = import_module("dnt.data.images").prepare_images(name, image_size)
        broken = prepared.broken
    else:
        prepared = import_module("dnt.data.text").prepare_text(name, tokenizer, column=column, threads=threads)
    for key, value in prepared.describe().items():
        print(f"{key:13} {value}")
    for picture in broken:
        print(f"{'left out':13} {picture['name']}: {picture['reason']}")


def report(folder: tyro.conf.Positional[Path]) -> None:
    """Write the page of a comparison again from its run folders."""
    import_module("dnt.report.page").write_report(folder)
    show(import_module("dnt.report.summary").Comparison(folder))


def export(run: tyro.conf.Positional[Path], folder: tyro.conf.Positional[Path]) -> None:
    """Write the model of a run, and its tokenizer, as a folder for transformers."""
    import_module("dnt.interchange.huggingface").export(run, folder)
    print(folder)


def list_tables() -> None:
    """Placements, norms, optimizers and sizes, each with formula and source."""
    import_module("dnt.listing").print_tables(console())


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 160)


def show(comparison: Any) -> None:
    console().print(comparison.table())
    print(comparison.verdict)
    print(f"page: {comparison.page}")


COMMANDS: dict[str, Callable[..., None]] = {
    "compare": compare,
    "tune": tune,
    "ablate": ablate,
    "train": train,
    "bench": bench,
    "inspect": inspect,
    "sample": sample,
    "list": list_tables,
    "data": data,
    "report": report,
    "export": export,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, 1 when it diverged or ran out of memory, 2 for bad input, 130 if stopped.

    SystemExit, also with 2, for --help and for options that do not parse.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments and not arguments[0].startswith("-"):
            lookup(COMMANDS, arguments[0], "command")
        arguments = with_recipe(list(arguments))
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="dnt",
            description="Deeply Normalized Transformers: train, compare, see why.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except (FloatingPointError, ProcessLost) as error:
        return complain(error, 1)
    except (ValueError, OSError) as error:
        return complain(error, 2)
    except MemoryError as error:
        return complain(f"out of memory: {error} Use a smaller --batch-size, --context or model.", 1)
    except KeyboardInterrupt as interrupt:
        return complain(str(interrupt) or "interrupted", 130)
    return 0


OF_RECIPES = ("train", "compare", "tune", "ablate")


def with_recipe(arguments: list[str]) -> list[str]:
    """`train ... --recipe NAME ...` with the options that the recipe stands for; the others given win. Of a comparison,
    which has placements, optimizers and rates of its own, what the recipe shares with it.
    """
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--recipe=") else [word])]
    if words[:1] not in [[command] for command in OF_RECIPES] or "--recipe" not in words:
        return arguments
    at = words.index("--recipe")
    recipe = lookup(RECIPES, words[at + 1] if at + 1 < len(words) else "", "recipe")
    if words[0] != "train":
        recipe = TrainSettings(**{field.name: getattr(recipe, field.name) for field in fields(Recipe)})
    return [words[0], *recipe.flags(), *words[1:at], *words[at + 2 :]]


def complain(message: object, status: int) -> int:
    print(f"dnt: {redacted(message)}", file=sys.stderr)
    return status


def entry() -> None:
    """`dnt` in a shell."""
    status = main()
    if status and (parallel := sys.modules.get("dnt.parallel")):
        parallel.leave(status)
    sys.exit(status)
