"""What `dnt list` shows.

Norms and optimizers are described by their docstrings, which are read from the source text: importing them would import
torch, and a second table of descriptions would drift.
"""

import ast
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dnt.nn.config import GPT_SIZES, gpt_parameters
from dnt.nn.placement import PLACEMENTS


def docstrings(file: str, table: str) -> dict[str, list[str]]:
    """For each row of a table (a dict literal of names in dnt/FILE), the paragraphs of the docstring behind it."""
    tree = ast.parse((Path(__file__).parent / file).read_text())
    documented = {
        node.name: (ast.get_docstring(node) or "").split("\n\n")
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    rows = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == table
    )
    assert isinstance(rows, ast.Dict)
    return {ast.literal_eval(k): documented[ast.unparse(v)] for k, v in zip(rows.keys, rows.values, strict=True) if k}


def print_tables() -> None:
    console = Console()
    placements = Table("placement", "forward pass (N: the norm)", "source", title_justify="left")
    for name, placement in PLACEMENTS.items():
        placements.add_row(name, placement.formula(), placement.source)
    console.print(placements)
    for what, file, table in (("norm", "nn/norms.py", "NORMS"), ("optimizer", "optim/factory.py", "OPTIMIZERS")):
        rows = Table(what, "formula", "source")
        for name, (formula, source, *_) in docstrings(file, table).items():
            rows.add_row(name, formula, source.split(". ")[0])
        console.print(rows)
    sizes = Table("model", "depth x dim x heads", "context", "vocabulary", "parameters")
    for name, size in GPT_SIZES.items():
        shape = f"{size.depth} x {size.dim} x {size.heads}"
        parameters = f"{gpt_parameters(size) / 1e6:,.1f}M"
        sizes.add_row(name, shape, f"{size.context}", f"{size.vocab_size:,}", parameters)
    console.print(sizes)
