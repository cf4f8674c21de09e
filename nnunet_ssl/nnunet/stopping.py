"""Ending a training at a point that can be continued, and with a sentence instead of a traceback."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from nnunet_ssl.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Context in which a first SIGTERM or Ctrl-C only sets ``signum``; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, signum: int, _: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum

    @property
    def name(self) -> str:
        return "" if self.signum is None else signal.Signals(self.signum).name

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process that the signal ended."""
        return 128 + int(self.signum or 0)


def show_user_errors_plainly() -> None:
    """Print an uncaught UserError as its sentence; Python's exit status stays 1. Other errors keep their traceback."""
    before = sys.excepthook
    if getattr(before, "shows_user_errors", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, UserError):
            sys.stdout.flush()
            print(f"\nError: {error}", file=sys.stderr)
        else:
            before(kind, error, trace)

    hook.shows_user_errors = True  # type: ignore[attr-defined]
    sys.excepthook = hook
