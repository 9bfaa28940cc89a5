"""Each norm alone and left out: the paper's ablation (2507.17501) and what its reviewers asked for. No torch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from dnt.experiments.cells import cells_of, checked
from dnt.experiments.tune import follow_protocol
from dnt.report.summary import Comparison
from dnt.settings import AblateSettings


def ablate(settings: AblateSettings | None = None, **options: Any) -> Comparison:
    """Tune every placement with one initialization for all, and "dnt" with its own as one more row.

    Options are the fields of AblateSettings. The page has the spread of each row's gradients beside its score.
    """
    settings = replace(settings or AblateSettings(), **options)
    cells = cells_of(settings)
    cells += [checked(replace(cell, init=settings.own_init)) for cell in cells if cell.placement == "dnt"]
    cells = list(dict.fromkeys(cells))
    return follow_protocol(settings, cells, Path(settings.out or f"runs/ablate-{settings.data_name}"))
