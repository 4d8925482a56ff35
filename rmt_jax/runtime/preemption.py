"""Being told to stop: SIGTERM is what schedulers send before they kill."""

import signal

import jax
from jax.experimental import multihost_utils

# What schedulers take for 'start me again' (EX_TEMPFAIL of sysexits.h).
REQUEUE = 75


class Stopped(Exception):
    """The run was told to stop; its state is saved."""


class Signals:
    """Notes SIGTERM between `with` and its end; the work asks at places where it can stop.

    Among several processes JAX's preemption service notes it instead, and names one step at which
    all of them stop, whichever was told.
    """

    def __init__(self):
        self.noted = False
        self._at_once = False
        self._alone = jax.process_count() == 1
        self._previous = None

    def __enter__(self) -> "Signals":
        if self._alone:
            self._take()
        return self

    def __exit__(self, *_) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._previous)
        elif self._at_once:
            # All that is left is to wait for process 0, which is told to stop as well.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _take(self) -> None:
        self._previous = signal.signal(signal.SIGTERM, self._note)

    def stop_at(self, step: int) -> bool:
        """Whether to save and stop after this step. Every process must ask after every step."""
        return self.noted if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def now_at_once(self) -> None:
        """From here on nothing is left to save: SIGTERM raises `Stopped` wherever it meets us."""
        self._at_once = True
        if not self._alone:  # no step comes any more at which JAX's service would be asked
            self._take()
        if self.noted:
            raise Stopped("told to stop")

    def _note(self, *_) -> None:
        self.noted = True
        if self._at_once:
            raise Stopped("told to stop")
