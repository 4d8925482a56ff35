"""Switches of JAX that the user's process or environment may have set for all of it.

Some of them this code does not work under (64-bit numbers, strict promotion, guarded transfers, no
compiling). Commands switch those off for their process, and say so; what is called from a program
of the user's switches them off for the time of the call, and changes nothing there.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import jax

OFF = "switched off while a command runs, and within each call of rmt_jax"
log = logging.getLogger(__name__)

# What each of them must be, and what else does no harm.
NEEDED = {
    "jax_enable_x64": (False,),
    "jax_numpy_dtype_promotion": ("standard",),
    "jax_numpy_rank_promotion": ("allow", "warn"),
    "jax_disable_jit": (False,),
    "jax_transfer_guard": ("allow", None, "log"),
    "jax_transfer_guard_host_to_device": ("allow", None, "log"),
    "jax_transfer_guard_device_to_device": ("allow", None, "log"),
    "jax_transfer_guard_device_to_host": ("allow", None, "log"),
}
# These work, and take time, or change figures: `doctor` names them.
FELT = {
    "jax_debug_nans": (False,),
    "jax_debug_infs": (False,),
    "jax_check_tracer_leaks": (False,),
    "jax_enable_checks": (False,),
    "jax_disable_most_optimizations": (False,),
    "jax_enable_compilation_cache": (True,),
    "jax_default_matmul_precision": (None,),
    "jax_default_prng_impl": ("threefry2x32",),
}


@contextlib.contextmanager
def neutral() -> Iterator[None]:
    """The switches that this code needs, in this thread, until the block ends."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.disable_jit(False),
        jax.transfer_guard("allow"),
    ):
        yield


class Neutral:
    """A compiled function that is called with these switches."""

    def __init__(self, function: Any):
        self.function = function

    def __call__(self, *args: Any, **named: Any) -> Any:
        with neutral():
            return self.function(*args, **named)


def make_neutral() -> None:
    """The same for the whole process; says what was switched off."""
    if found := unusual(NEEDED):
        for name in found:
            jax.config.update(name, NEEDED[name][0])
        log.warning("%s: switched off, since nothing here works with it", words(found))


def unusual(known: dict[str, tuple]) -> dict[str, object]:
    """Which of these switches are set to something else, and to what."""
    values = {name: jax.config.values.get(name, usual[0]) for name, usual in known.items()}
    return {name: value for name, value in values.items() if value not in known[name]}


def words(found: dict[str, object]) -> str:
    """'JAX_ENABLE_X64=True, …', as in the environment."""
    return ", ".join(f"{name.upper()}={value}" for name, value in found.items())
