"""Being told to stop: SIGTERM is what schedulers send before they kill, or SIGUSR1 where SLURM is
asked for it; a terminal that is closed sends SIGHUP, and Ctrl-C is SIGINT."""

import os
import signal

import jax
from jax.experimental import multihost_utils

# What schedulers take for 'start me again' (EX_TEMPFAIL of sysexits.h).
REQUEUE = 75
SAID = b"\nsaving after this step; Ctrl-C again stops at once\n"
INTERRUPTED = 130  # after Ctrl-C, as shells have it


class Stopped(BaseException):
    """The run was told to stop; its state is saved.

    A signal may raise it inside a library, which must not take it for an error of its own and go
    on, as JAX does with what reading its compilation cache raises: it is no `Exception`.
    """


class Signals:
    """Notes signals between `with` and its end; the work asks at places where it can stop. A second
    Ctrl-C is a KeyboardInterrupt.

    Among several processes JAX's preemption service notes SIGTERM instead, and names one step at
    which all of them stop, whichever was told; the other signals are handed on to it.
    """

    def __init__(self):
        self.noted = False
        self.interrupted = False  # by Ctrl-C
        self._at_once = False
        # Asking for the number of processes starts JAX: devices are still to be set, on a CPU.
        self._alone = not jax.distributed.is_initialized() or jax.process_count() == 1
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        others = (signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
        # nohup, and a shell that starts something with &, have them ignored: so they stay.
        for number in others:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._take(number)
        if self._alone:
            self._take(signal.SIGTERM)
        return self

    def __exit__(self, *_) -> None:
        for number, previous in self._previous.items():
            if number != signal.SIGTERM or self._alone:
                signal.signal(number, previous)  # type: ignore[arg-type]
            elif self._at_once:
                # All that is left is to wait for process 0, which is told to stop as well.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _take(self, number: int) -> None:
        self._previous[number] = signal.signal(number, self._note)

    @property
    def code(self) -> int:
        """The exit code of a run that was stopped."""
        return INTERRUPTED if self.interrupted else REQUEUE

    def stop_at(self, step: int) -> bool:
        """Whether to save and stop after this step. Every process must ask after every step."""
        return self.noted if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def now_at_once(self) -> None:
        """From here on nothing is left to save: a signal raises `Stopped` wherever it meets us, and
        Ctrl-C KeyboardInterrupt."""
        self._at_once = True
        if not self._alone:  # no step comes any more at which JAX's service would be asked
            self._take(signal.SIGTERM)
        if self.noted:
            raise Stopped("told to stop")

    def _note(self, number: int, _: object) -> None:
        if number == signal.SIGINT:
            if self.interrupted or self._at_once:
                raise KeyboardInterrupt
            self.interrupted = True
            os.write(2, SAID)  # a handler may have met a stream in the middle of a line
        if self._at_once:
            raise Stopped("told to stop")
        if not self._alone and number != signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self.noted = True
