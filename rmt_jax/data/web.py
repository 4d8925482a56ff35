"""A file over HTTP, whole or not at all."""

import http.client
import urllib.request


def get(address: str, seconds: int = 60) -> bytes:
    """The bytes at an address. Raises OSError where nothing answers within `seconds`, or the answer
    breaks off."""
    try:
        with urllib.request.urlopen(address, timeout=seconds) as response:
            return response.read()
    except http.client.HTTPException as error:  # cut off, or not HTTP: no OSError of its own
        raise OSError(f"the answer breaks off ({error!r})") from error
