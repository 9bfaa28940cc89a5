"""The code blocks of README and docs, executed."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from dnt.cli import COMMANDS, main
from dnt.data import sources, text
from dnt.experiments.cells import cells_of
from dnt.experiments.compare import grid
from dnt.settings import AblateSettings, CompareSettings, TuneSettings
from tests.conftest import TINY, small_corpora
from tumorvqa.cli import main as tumorvqa

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(page, language, code, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, (language, code) in enumerate(re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), flags=re.S | re.M))
]


@pytest.mark.parametrize(("page", "language", "code"), BLOCKS)
def test_code_blocks_run(page, language, code, workplace, cells_here, monkeypatch):
    """Python as it stands; make as a dry run; dnt for real, but with a tiny model and three steps. Little is held out.

    The measurements of results.md take hours: their grids are laid out, their cells not trained.
    """
    small_corpora()
    for module in (sources, text):
        monkeypatch.setattr(module, "MOST_HELD_OUT", 1 << 12)
    if language == "python":
        if "scans/" in code or "set/" in code:
            for command in ("phantom scans --count 4", "measure scans set", "ask set --no-balanced"):
                assert tumorvqa(command.split()) == 0
        exec(compile(code, "code block", "exec"), {})
        return
    assert language == "sh", f"a block in {language!r} is not checked"
    for name in ("my.txt", "shakespeare.txt"):
        shutil.copy("words.txt", name)
    monkeypatch.setitem(COMMANDS, "tune", plan_tune)  # a study trains many models
    monkeypatch.setitem(COMMANDS, "ablate", plan_ablate)
    if page.stem == "results":
        monkeypatch.setitem(COMMANDS, "compare", plan)
    for line in code.splitlines():
        program, *arguments = shlex.split(line)
        if program == "make":
            subprocess.run(["make", "-n", "-C", str(ROOT), *arguments], check=True, stdout=subprocess.DEVNULL)
            continue
        if program == "pip" or arguments == ["demo"]:  # what is installed here; what test_demo.py runs
            continue
        if program == "tumorvqa":
            assert tumorvqa(arguments) == 0, line
            continue
        assert program == "dnt", line
        if arguments[0] in ("train", "compare") and page.stem != "results" and "--dry-run" not in arguments:
            tiny = TINY if "vit-tiny" not in arguments else [word for word in TINY if word not in ("--context", "16")]
            arguments += [*tiny, "--steps", "3"]
        assert main(arguments) == 0, line


def plan(settings: CompareSettings) -> None:
    assert list(grid(settings))


def plan_tune(settings: TuneSettings) -> None:
    assert cells_of(settings)


def plan_ablate(settings: AblateSettings) -> None:
    assert cells_of(settings)


def test_the_tree_in_the_readme_names_every_file():
    readme = (ROOT / "README.md").read_text()
    trees = re.search(r"^```\nsrc/dnt/\n(.*?)^src/tumorvqa/\n(.*?)^tests/", readme, flags=re.S | re.M).groups()
    for package, tree in zip(("dnt", "tumorvqa"), trees, strict=True):
        there = {path.name for path in (ROOT / "src" / package).rglob("*.py")} - {"__init__.py", "__main__.py"}
        assert set(re.findall(r"(\w+\.py)\b", tree)) == there


def test_links_of_the_documentation_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
