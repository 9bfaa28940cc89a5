"""Stopping between two steps. No torch."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ProcessLost(Exception):
    """Another process of the same run is gone."""


@contextmanager
def on_stop_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle` on SIGINT, SIGTERM and, unless it is ignored (nohup), SIGHUP; only the main thread can.

    A shell script starts its background jobs with SIGINT ignored: sent to them on purpose, it must stop them still.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, lambda number, _frame: handle(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Whether a stop signal came. The first is only noted; the second raises KeyboardInterrupt at once."""
    received: list[int] = []

    def note(number: int) -> None:
        if received:
            raise KeyboardInterrupt("interrupted twice: what came after the last checkpoint is lost")
        received.append(number)

    with on_stop_signals(note):
        yield lambda: bool(received)
