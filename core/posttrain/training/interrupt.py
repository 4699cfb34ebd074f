"""Being asked to stop: SIGTERM and the first Ctrl-C end the step that is being taken, a second Ctrl-C ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

#: Set in ranks of torch's elastic agent, which hears of Ctrl-C by itself, passes it on, and kills at the second.
_AGENT = "TORCHELASTIC_RUN_ID"


class Interrupt:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal = ""
        """Name of the first signal; empty while there was none."""

    @contextlib.contextmanager
    def listening(self, speaks: bool) -> Iterator[None]:
        """Handle the signals in a block, in the main thread; ``speaks``: say on standard error what is going on.

        Elsewhere signals do what the program around it has them do.
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
