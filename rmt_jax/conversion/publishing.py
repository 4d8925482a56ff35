"""A folder onto the Hugging Face hub."""

from pathlib import Path

from rmt_jax.errors import RmtError

LOGIN = (
    "Make one with the right to write in the hub's settings, then run hf auth login, or set"
    " HF_TOKEN."
)


class PublishingError(RmtError):
    """A folder that could not be put on the hub; the message is a sentence for the user."""


def check(name: str) -> None:
    """Before anything is written: a name that the hub can have, and a token. Raises
    PublishingError."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise PublishingError(
            f"--push_to_hub {name} is no name on the hub, such as you/my-model ({error})."
        ) from error
    if not get_token():
        raise PublishingError(f"--push_to_hub {name} needs a token of the hub. {LOGIN}")


def push(folder: Path, name: str, private: bool = False) -> str:
    """Makes the repository `name` where there is none, puts all files of the folder there, and
    returns its address. Raises PublishingError."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        made = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=str(folder), commit_message="Exported by rmt_jax"
        )
        return str(made)
    except Exception as error:  # the hub's errors have no common parent below Exception
        status = int(getattr(getattr(error, "response", None), "status_code", 0))
        way = {
            401: f"The token is not known there. {LOGIN}",
            403: f"The token may not write there: is the name yours? {LOGIN}",
        }.get(status, "Check the network.")
        first = str(error).strip().splitlines()[:1] or [""]
        raise PublishingError(
            f"{folder} is written, but could not be put on the hub as {name}"
            f" ({type(error).__name__}: {first[0][:200]}). {way} Then: hf upload {name} {folder}"
        ) from error
