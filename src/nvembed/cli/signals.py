"""Signals that end a command. Standard library only: they are handled before anything else is imported."""

import signal
import sys
from types import FrameType
from typing import NoReturn

AGAIN_S = 0.1  # between looks at whether a signal has ended the command
IMPORT_S = 2.0  # how long a signal waits for the end of an import


class Interrupts:
    """Unwinds the stack on SIGTERM as on Ctrl-C, so that temporary files are removed.

    Libraries lose exceptions that are raised while they import a module, or make others of them: a signal
    waits for the end of an import. Python itself drops exceptions in destructors and callbacks: the exception
    of a signal is raised until it is being handled, and what is dropped meanwhile is not reported.
    """

    def __init__(self) -> None:
        self.number = 0  # of the last signal; 0 while there was none
        self._waits = 0  # for the end of an import

    def install(self) -> None:
        """Handle SIGTERM, and SIGINT unless it is ignored, as ``nohup`` and background jobs have it."""
        signal.signal(signal.SIGTERM, self._stop)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._stop)

    def end(self) -> None:
        """Raise nothing more: the command has ended."""
        if self.number and sys.platform != "win32":
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        sys.unraisablehook = lambda _: None
        if sys.platform != "win32":
            signal.signal(signal.SIGALRM, self._look_again)
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S, AGAIN_S)
            if self._waits < IMPORT_S / AGAIN_S and _importing(frame):
                return
        self._raise()

    def _look_again(self, _number: int, frame: FrameType | None) -> None:
        if _unwinding():
            return
        self._waits += 1
        if self._waits >= IMPORT_S / AGAIN_S or not _importing(frame):
            self._raise()

    def _raise(self) -> NoReturn:
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + self.number)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _unwinding() -> bool:
    """Whether the exception of a signal is being handled, or one that came of it."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            return True
        error = error.__context__
    return False
