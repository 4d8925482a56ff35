"""The error of everything under `rmt_jax.data` that has none of its own."""

from rmt_jax.errors import RmtError


class DataError(RmtError):
    """Data that cannot be made or read as asked; the message is a sentence for the user."""
