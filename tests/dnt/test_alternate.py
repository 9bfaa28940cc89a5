import os
import time
from functools import partial
from statistics import median

import pytest

from dnt.experiments.alternate import alternate
from dnt.interrupt import ProcessLost
from dnt.report.measured import Measured, paired_ratio


def counter(step: int):
    """Counts the rounds of its process."""
    done = [0]

    def measure() -> dict[str, float]:
        done[0] += step
        return {"count": done[0], "clock": time.monotonic()}

    return measure, lambda: {"process": os.getpid(), "word": os.environ.get("WORD")}


def broken():
    raise ValueError("nothing to measure")


def dying():
    def measure() -> dict[str, float]:
        os._exit(1)

    return measure, dict


def test_each_thing_has_a_process_and_they_take_turns_in_alternating_order(monkeypatch):
    monkeypatch.setenv("WORD", "before")
    order: list[str] = []
    builds = {"one": partial(counter, 1), "two": partial(counter, 2)}
    found = alternate(builds, 3, {"WORD": "within"}, show=lambda name, _: order.append(name))
    assert order == ["one", "two", "two", "one", "one", "two"]
    clocks = [found[name].rounds[i // 2]["clock"] for i, name in enumerate(order)]
    assert clocks == sorted(clocks), "one at a time"
    assert [[row["count"] for row in of.rounds] for of in found.values()] == [[1, 2, 3], [2, 4, 6]]
    assert len({os.getpid(), *(of.end["process"] for of in found.values())}) == 3
    assert {of.end["word"] for of in found.values()} == {"within"} and os.environ["WORD"] == "before"


def test_what_fails_in_a_process_is_raised_with_its_name_and_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)bad: Traceback.*in broken.*ValueError: nothing to measure"):
        alternate({"good": partial(counter, 1), "bad": broken}, 1)


def test_a_process_that_dies_is_named():
    with pytest.raises(ProcessLost, match="gone: its process died"):
        alternate({"gone": dying}, 1)


def test_the_paired_ratio_is_blind_to_what_slows_a_round():
    slow = [1.0, 7.0, 2.0, 3.0, 1.5]
    a, b = (Measured([{"s": factor * of_round} for of_round in slow]) for factor in (3.0, 2.0))
    assert paired_ratio(a, b, "s") == 1.5 and a.median("s") == 3.0 * median(slow)
