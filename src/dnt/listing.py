"""What `dnt list` shows.

Norms and optimizers are described by their docstrings, which are read from the source text: importing them would import
torch, and a second table of descriptions would drift.
"""

import ast
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from dnt.lookup import lookup
from dnt.nn.config import GPT_SIZES, VIT_SIZES, GPTConfig, ViTConfig, gpt_config, gpt_parameters, vit_parameters
from dnt.nn.placement import PLACEMENTS
from dnt.optim.spec import is_mixture, parts_of
from dnt.recipes import RECIPES


def definitions(file: str, table: str) -> dict[str, ast.ClassDef | ast.FunctionDef]:
    """The class or function behind each row of a table (a dict literal of names in dnt/FILE, or that it imports)."""
    tree = parsed(file)
    imported = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    trees = [
        parsed(f"{name.replace('.', '/')}.py".removeprefix("dnt/")) for name in imported if name.startswith("dnt.")
    ]
    defined = {
        node.name: node
        for each in (*trees, tree)
        for node in each.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    rows = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == table
    )
    assert isinstance(rows, ast.Dict)
    return {ast.literal_eval(k): defined[ast.unparse(v)] for k, v in zip(rows.keys, rows.values, strict=True) if k}


def parsed(file: str) -> ast.Module:
    return ast.parse((Path(__file__).parent / file).read_text())


def described(node: ast.ClassDef | ast.FunctionDef) -> list[str]:
    """Formula and source of a row, and the defaults of its options if it is a function."""
    formula, source, *_ = (ast.get_docstring(node) or "").split("\n\n")
    row = [formula, source.split(". ")[0]]
    if isinstance(node, ast.FunctionDef):
        options = zip(node.args.args[-len(node.args.defaults) :], node.args.defaults, strict=True)
        row.append(", ".join(f"{option.arg} {ast.unparse(value)}" for option, value in options))
    return row


def options_of(node: ast.ClassDef | ast.FunctionDef) -> set[str]:
    """The names of what an optimizer's factory can be told."""
    assert isinstance(node, ast.FunctionDef)
    return {argument.arg for argument in node.args.args}


def default_of(node: ast.ClassDef | ast.FunctionDef, option: str) -> float:
    """What an optimizer's factory takes if not told."""
    assert isinstance(node, ast.FunctionDef)
    defaults = dict(zip(reversed(node.args.args), reversed(node.args.defaults), strict=False))
    return float(next(ast.literal_eval(value) for argument, value in defaults.items() if argument.arg == option))


@cache
def optimizer_rows() -> dict[str, ast.ClassDef | ast.FunctionDef]:
    """The factories of optimizers, by name."""
    return definitions("optim/factory.py", "OPTIMIZERS")


def heard_by(optimizer: str) -> set[str]:
    """What an optimizer can be told; "model" too where it divides the model, and its rates are its own."""
    rows = optimizer_rows()
    if not is_mixture(optimizer):
        return options_of(lookup(rows, optimizer, "optimizer"))
    options = (options_of(lookup(rows, part.name, "optimizer")) for part in parts_of(optimizer))
    return {"model"}.union(*options) - {"momentum_in_grad"}


def own_default(optimizer: str, option: str) -> float:
    """What lr or weight_decay is if not told: of a mixture, those of the first part without a rate of its own."""
    free = [part.name for part in parts_of(optimizer) if part.lr is None]
    if not free:
        raise ValueError(f"every part of {optimizer!r} has a rate of its own; drop one of them, and --lr is that.")
    return default_of(lookup(optimizer_rows(), free[0], "optimizer"), option)


def reading(size: GPTConfig | ViTConfig) -> tuple[str, str, str]:
    """What a model of this size reads, what it scores, and its number of parameters."""
    match size:
        case GPTConfig():
            row = f"{size.context} tokens", f"{size.vocab_size:,} symbols", gpt_parameters(size)
        case ViTConfig():
            edge, patch = size.image_size, size.patch_size
            row = f"{edge} x {edge} / {patch}", f"{size.classes:,} classes", vit_parameters(size)
    return *row[:2], f"{row[2] / 1e6:,.1f}M"


def print_tables(console: Console) -> None:
    formula = Column("forward pass (N: the norm; f[N]: N before its last matrix)", no_wrap=True)
    placements = Table("placement", formula, "source")
    prescriptions = Table(
        "placement",
        "prescribes (--no-prescribed: not decay, warm-up, unit weights)",
        "seen to train at",
    )
    for name, placement in PLACEMENTS.items():
        parts = placement.formula().replace(" [", "\n[") if placement.layers else placement.formula()
        placements.add_row(name, escape(parts), placement.source)
        prescriptions.add_row(name, str(placement.prescribes), placement.prescribes.trains_at())
    console.print(placements)
    console.print(prescriptions)
    norms = Table("norm", "formula", "source")
    for name, node in definitions("nn/norms.py", "NORMS").items():
        norms.add_row(name, *described(node))
    console.print(norms)
    optimizers = Table("optimizer", "formula", "source", "defaults")
    for name, node in optimizer_rows().items():
        optimizers.add_row(name, *described(node))
    console.print(optimizers)
    sizes = Table("model", "depth x dim x heads", "reads", "scores", "parameters")
    for name, size in (GPT_SIZES | VIT_SIZES).items():
        sizes.add_row(name, f"{size.depth} x {size.dim} x {size.heads}", *reading(size))
    console.print(sizes)
    recipes = Table("recipe", "model", "placement", "optimizer", "lr", "reads", title_justify="left")
    for name, recipe in RECIPES.items():
        samples = recipe.steps * recipe.batch_size
        reads = f"{samples / 1e6:,.0f}M images" if samples > 1e6 else f"{samples:,} images"
        if not recipe.reads_images:
            tokens = samples * (recipe.context or gpt_config(recipe.model).context)
            reads = f"{tokens / 1e9:,.0f}G tokens" if tokens > 1e9 else f"{tokens / 1e6:,.1f}M tokens"
        rate = f"{recipe.lr:g}" if recipe.lr else ""
        recipes.add_row(name, recipe.model, recipe.placement, recipe.optimizer, rate, reads)
    console.print(recipes)
