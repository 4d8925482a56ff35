"""One base class for everything that a user can mend; commands catch it once, in `cli.run`."""


class RmtError(ValueError):
    """Something that cannot be done as asked. The message is a sentence for the user, with the
    numbers and the way out: commands print it without a traceback and exit with code 2."""


class ConfigError(RmtError):
    """A setting that cannot work."""
