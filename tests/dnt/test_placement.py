import json
from dataclasses import replace
from pathlib import Path

import pytest

from dnt import PLACEMENTS, Placement, Slots

# The paper's ablation (arXiv 2507.17501): PreNorm attn, PreNorm ffn, QKNorm, InputNorm, MidNorm
ABLATION = {
    "pre-ln": (1, 1, 0, 0, 0),
    "s2": (1, 1, 1, 0, 0),
    "s3": (1, 1, 1, 1, 0),
    "s4": (1, 1, 1, 1, 1),
    "dnt": (1, 0, 1, 1, 1),
}


@pytest.mark.parametrize("name", ABLATION)
def test_placements_are_the_rows_of_the_papers_ablation(name):
    p = PLACEMENTS[name]
    assert p.attn.mid == p.mlp.mid
    assert (p.attn.pre, p.mlp.pre, p.qk, p.input, p.attn.mid) == tuple(map(bool, ABLATION[name]))
    assert not p.attn.post and not p.mlp.post and p.final


def test_formulas_are_those_of_the_literature():
    assert PLACEMENTS["pre-ln"].formula() == "x = embed; x + attn(N(x)); x + mlp(N(x)); head(N(x))"
    assert PLACEMENTS["post-ln"].formula() == "x = embed; N(x + attn(x)); N(x + mlp(x)); head(x)"
    assert PLACEMENTS["peri-ln"].formula() == "x = embed; x + N(attn(N(x))); x + N(mlp(N(x))); head(N(x))"
    assert PLACEMENTS["dnt"].formula() == "x = N(embed); x + N(attn_qk(N(x))); x + N(mlp(x)); head(N(x))"
    assert Slots(post=True, skip=2.0).formula("f") == "N(2 x + f(x))"


def test_no_two_rows_place_norms_alike():
    rows = {replace(p, source="", prescribes=replace(p.prescribes, rates=())) for p in PLACEMENTS.values()}
    assert len(rows) == len(PLACEMENTS)


def test_a_placement_of_ones_own_is_data():
    own = Placement(attn=Slots(mid=True), mlp=Slots(pre=True), qk=True)
    assert own.formula() == "x = embed; x + N(attn_qk(x)); x + mlp(N(x)); head(N(x))"


def test_the_rates_of_each_row_are_those_that_the_benchmark_found():
    cells = json.loads((Path(__file__).parents[2] / "bench/results/zoo.json").read_text())["cells"]
    found: dict[str, list[tuple[str, float, float]]] = {}
    for cell in cells:
        name = cell["row"].removeprefix("images: ") if cell["row"][8:] in ("lape", "dual-patchnorm") else cell["row"]
        if name in PLACEMENTS and cell["optimizer"] in ("adamw", "msgdw"):
            tried = {float(rate): loss for rate, loss in cell["tried"].items() if loss is not None}
            near = [rate for rate, loss in tried.items() if loss < min(tried.values()) + 0.2]
            found.setdefault(name, []).append((cell["optimizer"], min(near), max(near)))
    rows = {name: list(placement.prescribes.rates) for name, placement in PLACEMENTS.items()}
    assert rows == {name: sorted(rates) for name, rates in found.items()}
