"""Another process of the run that is gone: noticed within a minute, and said in a sentence.

The network says so first where it can: what the processes do together raises an exception. A host
that vanished says nothing; JAX's coordination service then misses its heartbeats and aborts this
process from a thread of C++, with a stack trace. (It can call no Python function: jaxlib 0.10 and
0.12 can't hand it the status.) So the signal of that abort has a handler.

A process that fails by itself leaves without the others after a while: JAX waits for them at its
end, and they would wait for it.
"""

import atexit
import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator

import jax

from rmt_jax.errors import RmtError
from rmt_jax.runtime.preemption import INTERRUPTED, REQUEUE, Stopped

SILENCE = 40  # seconds without a heartbeat after which a process counts as gone
GRACE = 10  # seconds in which others that fail or stop alike get to their end
GONE = 69  # the exit code: EX_UNAVAILABLE of sysexits.h
SAID = (
    "error: another process of this run is gone: it has died, or its host cannot be reached. What"
    " it said last tells why. What was saved is whole: the same command continues from there.\n"
)
# In messages of what processes do together: of gloo (CPUs), NCCL (GPUs) and gRPC.
BROKEN = re.compile(
    r"gloo|nccl|connection (closed|reset) by peer|coordination service|^(UNAVAILABLE|ABORTED):",
    re.IGNORECASE | re.MULTILINE,
)
_own: list[int] = []  # the exit code of a failure of this process's own
_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)


@_handler
def _aborted(_: int) -> None:
    if _own:
        os._exit(_own[0])
    _end()


@contextlib.contextmanager
def noticed() -> Iterator[None]:
    """Work that the processes of a run do together. Where it breaks off because one is gone, this
    one ends with a sentence and the code `GONE`; so it does after the block, when JAX aborts it."""
    if _several():
        # Python's own handlers run after the one of C, which here never returns.
        ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)
    try:
        yield
    except BaseException as error:
        end_if_gone(error)
        if _several() and not _own:
            _own.append(_code(error))
            # At once: the interpreter starts no thread when it ends.
            meeting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
            meeting.start()
            atexit.register(_leave, meeting)  # runs before JAX's own, which has no end
        raise


def end_if_gone(error: BaseException) -> None:
    """Ends the process where the exception, or one behind it, says that another one is gone."""
    one: BaseException | None = error
    while one is not None and _several():
        ours = isinstance(one, RmtError) or not isinstance(one, ValueError | RuntimeError)
        if not ours and BROKEN.search(str(one)):
            _end()
        one = one.__cause__ or one.__context__


def _several() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _end() -> None:
    # No stream is flushed that another thread may hold.
    os.write(2, f"\n{SAID}".encode())
    os._exit(GONE)


def _code(error: BaseException) -> int:
    """The exit code that `cli.run`, or a command that was stopped, gives this exception."""
    if isinstance(error, Stopped):
        return REQUEUE
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return 2 if isinstance(error, RmtError | OSError) else 1


def _leave(meeting: threading.Thread) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    meeting.join(GRACE)
    os._exit(_own[0])
