"""Weights that timm downloads, and what to do without a network."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError

import timm
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

# The hub's client raises these two if it can't reach the hub and the file is not in its cache.
_NO_NETWORK = (LocalEntryNotFoundError, OfflineModeIsEnabled, URLError, ConnectionError, TimeoutError)


@contextmanager
def downloading(name: str, cures: str) -> Iterator[None]:
    """Say what was tried, and the cures, if the block can't download the weights of a network of timm.

    Args:
        name: Of the network.
        cures: What to set instead.

    Raises:
        ConnectionError: If there is no connection; the original error is its cause.
    """
    try:
        yield
    except _NO_NETWORK as error:
        raise ConnectionError(
            f"can't download timm's weights of {name} from {_source(name)}: there is no connection, and they "
            f"are not in the cache of an earlier download; set {cures}"
        ) from error


def _source(name: str) -> str:
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None:
        return "their source"
    return f"huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else str(cfg.url or "their source")
