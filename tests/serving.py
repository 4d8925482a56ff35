"""The server of `ask --web` in a thread, for tests."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rmt_jax.evaluation import server
from rmt_jax.evaluation.readings import Readings


@contextmanager
def serving(model, about: str) -> Iterator[server.Server]:
    made = server.Server(Readings(model), port=0, about=about)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        thread.join()
        made.server_close()
