"""The least values of numbers in a config."""

from collections.abc import Mapping
from typing import Any


def check_least(config: Any, least: Mapping[str, int], prefix: str = "") -> None:
    """Raise ``ValueError`` for numbers of a config that are below their least value; null is none.

    Args:
        config: A dataclass of the schema.
        least: By the name of the field.
        prefix: Of the options, such as "data.".
    """
    for name, smallest in least.items():
        value = getattr(config, name)
        if value is not None and value < smallest:
            raise ValueError(f"expected {prefix}{name} of {smallest} or more, got {prefix}{name}={value}")
