"""Timing things side by side: a process for each, in turn, so that what slows the machine slows all of them."""

import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from traceback import format_exc
from typing import Any

from dnt.interrupt import ProcessLost
from dnt.report.measured import Measured

Measure = Callable[[], dict[str, float]]  # one round: seconds, or anything else, by name


def alternate(
    builds: Mapping[str, Callable[[], tuple[Measure, Callable[[], dict[str, Any]]]]],
    rounds: int,
    environment: Mapping[str, str] | None = None,
    show: Callable[[str, int], None] = lambda name, round: None,
) -> dict[str, Measured]:
    """Measure everything `rounds` times, in turn, and in the opposite order every other time.

    builds: by name, a picklable function without arguments that a new process calls once; it returns the measurement of
    one round, and what tells at the end what is to be kept beside (the peak of memory, say). Only one process computes
    at a time; all stay in memory. environment: variables of the processes. RuntimeError with the process's traceback
    if one fails, ProcessLost if it died; the others are ended then.
    """
    context = get_context("spawn")
    found = {name: Measured() for name in builds}
    before = {name: os.environ.get(name) for name in environment or {}}
    os.environ.update(environment or {})
    pipes: dict[str, Connection] = {}
    processes = []
    try:
        for name, build in builds.items():
            pipes[name], far = context.Pipe()
            process = context.Process(target=partial(serve, build, far), daemon=True)
            process.start()
            far.close()
            processes.append(process)
            answer(name, pipes[name])  # built
        for i in range(rounds):
            for name in list(builds)[:: 1 if i % 2 == 0 else -1]:
                show(name, i)
                found[name].rounds.append(answer(name, pipes[name], "round"))
        for name, pipe in pipes.items():
            found[name].end = answer(name, pipe, "end")
        for process in processes:
            process.join()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        for process in processes:
            process.kill()
            process.join()
    return found


def answer(name: str, pipe: Connection, question: str | None = None) -> Any:
    """What a process says next, or to a question."""
    try:
        if question:
            pipe.send(question)
        kind, content = pipe.recv()
    except (EOFError, OSError):
        raise ProcessLost(f"{name}: its process died, of too little memory perhaps.") from None
    if kind == "error":
        raise RuntimeError(f"{name}: {content}")
    return content


def serve(build: Callable[[], tuple[Measure, Callable[[], dict[str, Any]]]], pipe: Connection) -> None:
    """In the process: build, then measure as often as asked. Ctrl-C is for the process that asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        measure, end = build()
        pipe.send(("built", None))
        while pipe.recv() == "round":
            pipe.send(("round", measure()))
        pipe.send(("end", end()))
    except Exception:
        pipe.send(("error", format_exc()))
