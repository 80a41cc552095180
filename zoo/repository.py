"""Repositories of the Hugging Face hub: their names, and the folders that they download to."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from zoo.pretrained import CONFIG, WEIGHTS

_PREFIX = "hf-hub:"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@\S+)?")


def check_repository(name: object) -> str:
    """Return a name that the hub accepts.

    Raises:
        ValueError: If it isn't "user/name".
    """
    try:
        if not isinstance(name, str) or "/" not in name:
            raise HFValidationError("it has no user")
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f'expected a repository such as "user/name", got {name!r}: {error}') from error
    return name


def find(source: str | Path) -> Path:
    """Return the folder of a saved network: the source itself, or what the hub's repository of this name holds.

    Only weights and config.json are downloaded.

    Args:
        source: A folder; or "user/name", "user/name@revision", also after "hf-hub:", if there is no such folder.

    Raises:
        FileNotFoundError: If the hub can't give such a repository.
    """
    text = str(source)
    if not text.startswith(_PREFIX) and (Path(source).exists() or not _NAME.fullmatch(text)):
        return Path(source)
    name, _, revision = text.removeprefix(_PREFIX).partition("@")
    check_repository(name)
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[CONFIG, WEIGHTS]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise FileNotFoundError(
            f"there is no folder {text!r} here, and the hub gave no repository {name!r}; for a private one log in "
            f"by `hf auth login` or set HF_TOKEN; without a network pass the path of a folder: {error}"
        ) from error
