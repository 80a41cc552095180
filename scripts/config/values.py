"""The values of options: whether they have the option's type, and in words which type that is."""

import dataclasses
import types
from typing import Any, Union, get_args, get_origin

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_PLURALS = {int: "whole numbers", float: "numbers", bool: "true or false", str: "texts"}
_EXAMPLES = {int: "1", float: "0.5", bool: "true", str: "a"}


def wrong(argument: str, override: Override, expected: Any) -> str | None:
    """Return what is wrong with the value of an argument.

    Args:
        argument: As it was typed, for the message.
        override: Hydra's reading of it.
        expected: The type of the option; Any and config groups are not checked, nor are sweeps.
    """
    if (
        expected is Any
        or dataclasses.is_dataclass(expected)
        or override.is_delete()
        or override.is_sweep_override()
    ):
        return None
    value = with_floats(override.value(), expected)
    if _fits(value, expected):
        return None
    key, typed = override.key_or_group, argument.partition("=")[2]
    listed = _fits(with_floats([override.value()], expected), expected)
    mend = f"; did you mean {key}=[{typed}]?" if listed else ""
    return f"expected {in_words(expected)} for {key}, got {key}={typed}{mend}"


def with_floats(value: Any, expected: Any) -> Any:
    """Return a value whose whole numbers are floats where the type has floats in nested lists.

    OmegaConf converts whole numbers in a list of floats, but not in a list of such lists.
    """
    expected = _without_none(expected)
    if expected is float and type(value) is int:
        return float(value)
    if get_origin(expected) is list and isinstance(value, list):
        return [with_floats(one, get_args(expected)[0]) for one in value]
    return value


def rewritten(argument: str, override: Override, expected: Any) -> str:
    """Return an argument as OmegaConf takes it: with floats for the whole numbers in a list of lists of floats."""
    if expected is Any or override.is_delete() or override.is_sweep_override():
        return argument
    value = override.value()
    if not isinstance(value, list) or not any(isinstance(one, list) for one in value):
        return argument
    floats = with_floats(value, expected)
    return argument if repr(floats) == repr(value) else f"{argument.partition('=')[0]}={floats}"


def in_words(expected: Any) -> str:
    """Describe a type, with an example of a list."""
    inner = _without_none(expected)
    words = _WORDS.get(inner) or (f"{_listed(inner)}, such as {_example(inner)}" if _is_list(inner) else None)
    return f"{words or 'keys and values, such as {a: 1}'}{'' if inner is expected else ', or null'}"


def _fits(value: Any, expected: Any) -> bool:
    """Tell whether OmegaConf takes a value for a type, and a tuple has its length."""
    holder = dataclasses.make_dataclass("Holder", [("value", expected, dataclasses.field(default="???"))])
    config = OmegaConf.structured(holder)
    try:
        config.value = value
    except OmegaConfBaseException:
        return False
    inner = _without_none(expected)
    sized = get_origin(inner) is tuple and Ellipsis not in get_args(inner) and isinstance(value, list)
    return not sized or len(value) == len(get_args(inner))


def _is_list(expected: Any) -> bool:
    return get_origin(expected) in (list, tuple)


def _listed(expected: Any) -> str:
    """Describe a list or tuple: "a list of 2 numbers"."""
    first, *others = get_args(expected)
    number = f"{1 + len(others)} " if others and others != [Ellipsis] else ""
    inner = f"lists of {_PLURALS[get_args(first)[0]]}" if _is_list(first) else _PLURALS.get(first, "values")
    return f"a list of {number}{inner}"


def _example(expected: Any) -> str:
    first = get_args(expected)[0]
    one = _example(first) if _is_list(first) else _EXAMPLES.get(first, "a")
    return f"[{one},{one}]"


def _without_none(expected: Any) -> Any:
    """Return X of ``X | None``."""
    if get_origin(expected) not in (types.UnionType, Union):
        return expected
    others = [one for one in get_args(expected) if one is not type(None)]
    return others[0] if len(others) == 1 else expected
