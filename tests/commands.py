"""Commands as a shell runs them, in the process of the test."""

from collections.abc import Callable, Sequence

import pytest

from rmt_jax import cli


def exit_code(main: Callable, argv: Sequence[str]) -> int:
    """What the command ends with; it prints as in a shell."""
    with pytest.raises(SystemExit) as stop:
        cli.run(main, list(argv))
    assert isinstance(stop.value.code, int)
    return stop.value.code
