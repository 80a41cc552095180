"""``push``: share a converted network in a repository of the Hugging Face hub."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, get_token
from timm.utils import unwrap_model
from torch import nn

from zoo.card import CARD, Card, card_text
from zoo.repository import check_repository
from zoo.saved import save

_NO_CARD = Card()


def push(
    model: nn.Module,
    repository: str,
    card: Card = _NO_CARD,
    *,
    model_args: Mapping[str, Any] | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload a converted timm network with a model card; ``zoo.load(repository)`` loads it.

    The files are those of ``zoo.save``, and README.md: the deformable layers, the preprocessing of the images, and
    what ``card`` says. The repository is created if there is none.

    Args:
        model: As in ``zoo.save``.
        repository: "user/name" or "organisation/name".
        card: Data, metrics, command and license.
        model_args: As in ``zoo.save``.
        private: Whether a new repository is private; None for the account's default. A repository that exists stays
            as it is.
        token: Of the hub, with the right to write; by default that of ``hf auth login`` or HF_TOKEN.
        revision: An existing branch; by default "main".

    Returns:
        The address of the commit.

    Raises:
        ValueError: If there is no token, the name is no repository's, or ``zoo.save`` refuses the network; nothing
            is uploaded then.
        OSError: If the hub refuses the upload, with its reason.
    """
    check_token(check_repository(repository), token)
    with TemporaryDirectory() as folder:
        save(model, folder, model_args)
        Path(folder, CARD).write_text(card_text(unwrap_model(model), repository, card), encoding="utf-8")
        api = HfApi(token=token)
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, revision=revision, commit_message="Upload by zoo.push"
        )
    return str(commit.commit_url)


def check_token(repository: str, token: str | None = None) -> None:
    """Raise ``ValueError`` if there is no token to upload with; whether the hub accepts it shows the upload."""
    if not (token or get_token()):
        raise ValueError(
            f"there is no token of the Hugging Face hub to push {repository!r} with; log in by `hf auth login`, or "
            "set HF_TOKEN to a token with the right to write"
        )
