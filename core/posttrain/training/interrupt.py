"""Stop signals: SIGTERM and the first Ctrl-C end the run after the current step, a second Ctrl-C at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

#: Set in ranks of torch's elastic agent, which handles Ctrl-C itself, passes it on, and kills at the second.
_AGENT = "TORCHELASTIC_RUN_ID"


class Interrupt:
    """Signal by which this process was asked to stop."""

    def __init__(self) -> None:
        self.signal = ""
        """Name of the first signal; empty before one."""

    @contextlib.contextmanager
    def listening(self, speaks: bool) -> Iterator[None]:
        """Handle the signals inside a block, in the main thread; with ``speaks`` report on standard error.

        In other threads signals keep the handlers of the surrounding program.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._speaks = speaks
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal = signal.Signals(number).name
            if self._speaks:
                text = f"\n{self.signal}: this step is finished and saved. Ctrl-C (again) ends at once.\n"
                with contextlib.suppress(OSError):
                    os.write(2, text.encode())  # print() may be in the middle of a line
        elif number == signal.SIGINT and _AGENT not in os.environ:
            raise KeyboardInterrupt
