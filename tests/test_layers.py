"""The import rules of the architecture."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import dnt
import tumorvqa

SOURCE = Path(dnt.__file__).parent
PARTS = ("nn", "optim", "data", "analysis")
NO_TORCH = ["runs", "settings", "lookup", "cli", "listing", "nn.config", "nn.placement", "optim.schedule", "data.text"]
NO_TORCH += [
    "data.tokenizers",
    "data.sources",
    "data.pieces",
    "data.hub",
    "data.archives",
    "data.cache",
    "data.augment",
    "data.ahead",
    "data.pictures",
    "redact",
    "extras",
    "report.cells",
    "report.summary",
    "report.page",
    "report.speed",
    "report.findings",
    "report.inspection",
    "report.plots",
    "nn.flops",
    "experiments.alternate",
    "experiments.compare",
]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("part", PARTS)
def test_parts_do_not_import_each_other_or_what_stands_above(part):
    others = {f"dnt.{other}" for other in PARTS if other != part}
    tops = ("train", "loop", "weights", "sampling", "cli", "experiments", "report", "settings")
    above = {f"dnt.{top}" for top in tops}
    for path in (SOURCE / part).rglob("*.py"):
        for name in imported(path):
            assert not any(name == bad or name.startswith(bad + ".") for bad in others | above), f"{path.name}: {name}"


OPEN_TO_TUMORVQA = {"dnt", "dnt.files", "dnt.lookup"}


def test_tumorvqa_needs_dnt_and_never_the_other_way_round():
    for path in SOURCE.rglob("*.py"):
        assert not any(name.split(".")[0] == "tumorvqa" for name in imported(path)), path.name
    for path in (SOURCE.parent / "tumorvqa").rglob("*.py"):
        of_dnt = {name for name in imported(path) if name.split(".")[0] == "dnt"}
        assert of_dnt <= OPEN_TO_TUMORVQA, f"{path.name}: {of_dnt - OPEN_TO_TUMORVQA}"


def test_tumorvqa_and_its_help_do_without_torch_and_heavy_packages():
    heavy = "torch, nibabel, sklearn, skimage, pyarrow, scipy".replace(", ", "', '")
    code = (
        "import sys; from tumorvqa.cli import main\n"
        "for arguments in (['--help'], ['demo', '--help'], ['rules']):\n"
        "    try: main(arguments)\n    except SystemExit as stop: assert not stop.code\n"
        f"assert not {{'{heavy}'}} & set(sys.modules), {{'{heavy}'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_only_train_knows_fabric():
    knowing = {p.name for p in SOURCE.rglob("*.py") if any(n.startswith("lightning") for n in imported(p))}
    assert knowing == {"train.py"}


def test_only_one_file_knows_transformers():
    assert [p.name for p in SOURCE.rglob("*.py") if "transformers" in imported(p)] == ["huggingface.py"]


def test_what_needs_no_torch_does_not_import_it():
    modules = ", ".join(f"dnt.{name}" for name in NO_TORCH)
    code = f"import sys, dnt, {modules}; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "arguments", [["list"], ["--help"], *([command, "--help"] for command in ("train", "bench", "compare", "inspect"))]
)
def test_list_and_help_never_import_torch(arguments):
    code = (
        "import sys; from dnt.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("package", [dnt, tumorvqa])
def test_public_table_is_complete_and_true(package):
    source, name = Path(package.__file__).parent, package.__name__
    for path in source.rglob("*.py"):  # a module must not hide a public name
        if path.name != "__main__.py":
            import_module(".".join((name, *path.relative_to(source).with_suffix("").parts)).removesuffix(".__init__"))
    for public, home in package.PUBLIC.items():
        assert getattr(package, public) is getattr(import_module(home), public)
    shown = {n.asname or n.name for node in ast.walk(ast.parse((source / "__init__.py").read_text()))
             if isinstance(node, ast.ImportFrom) and node.module.startswith(name) for n in node.names}  # fmt: skip
    assert shown == set(package.__all__), "the names for type checkers are those that load"


def test_every_package_file_is_reachable_without_side_effects_on_random_state():
    code = (
        "import torch; before = torch.get_rng_state(); import dnt.train, dnt.sampling, dnt.experiments.compare\n"
        "assert torch.equal(before, torch.get_rng_state())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
