"""Ctrl-C at safe instants only."""

import signal
import threading
from typing import Any


class DeferredInterrupt:
    """While the context lasts, Ctrl-C waits for the next `check`, or for the end.

    So no interrupt can fall between the steps by which a module or a global setting is put back.
    Pressed twice, it acts at once. Outside the main thread nothing is deferred: none comes there.
    """

    def __init__(self) -> None:
        self._pending = False
        self._depth = 0
        self._usual: Any = None

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        main = threading.current_thread() is threading.main_thread()
        self._usual = signal.getsignal(signal.SIGINT) if main else None
        if callable(self._usual):
            signal.signal(signal.SIGINT, self._note)

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        if callable(self._usual):
            signal.signal(signal.SIGINT, self._usual)
        self.check()

    def check(self) -> None:
        """Acts on a Ctrl-C that has come meanwhile."""
        if self._pending:
            self._pending = False
            self._usual(signal.SIGINT, None)

    def _note(self, number: int, frame: Any) -> None:
        if self._pending:
            self._usual(number, frame)
        self._pending = True
