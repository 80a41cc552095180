"""The arguments of a command: paths need no Hydra quotes, and mistyped keys and options get suggestions."""

import dataclasses
import difflib
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from zoo import conf  # type: ignore[attr-defined]  # installed from conf/

from . import values


def is_override(argument: str) -> bool:
    """Tell whether an argument is Hydra's ``key=value`` or ``~key``, and no option such as ``--help``."""
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def parse(argument: str) -> Override:
    """Return Hydra's reading of an argument.

    Raises:
        HydraException: If Hydra can't read it.
    """
    return OverridesParser.create().parse_override(argument)


def quoted(argument: str, schema: Any, sweep: bool) -> str:
    """Return an argument with quotes if its value is text that Hydra would not accept without them.

    Without quotes, Hydra's grammar allows no letters beyond ASCII and no ``=``, ``(``, ``#`` or ``&``. It reads
    ``a,b`` as a sweep and ``true`` as a bool.

    Args:
        argument: ``key=value``.
        schema: The dataclass whose keys are overridden.
        sweep: Whether commas separate the values of a sweep.

    Raises:
        ValueError: If the argument can't be read with quotes either; the message shows where they go.
    """
    key, _, value = argument.partition("=")
    expected = type_of(key.lstrip("+~").partition("@")[0], schema)
    text = f"{key}={QuotedString(text=value, quote=Quote.single).with_quotes()}"
    try:
        override = parse(argument)
    except HydraException as error:
        if not _may_be_text(expected):
            raise ValueError(f"can't read '{argument}': {_mend(key, expected, error)}") from error
        return text
    if not _is_text(expected) or sweep or (value and value[0] in "'\""):
        return argument
    if override.is_sweep_override() or not isinstance(override.value(), str | None):
        return text
    return argument


def unknown_key(key: str, schema: Any) -> str | None:
    """Return what is wrong with a key that the schema lacks, with similar keys."""
    path, whole = "", schema
    for part in key.replace("/", ".").split("."):
        if not dataclasses.is_dataclass(schema):
            return None  # free-form, such as model.kwargs
        keys = {f.name: f.type for f in dataclasses.fields(schema)}
        if part not in keys:
            known = ", ".join(f"{path}{name}" for name in keys)
            elsewhere = [found for found in _all_keys(whole) if found.rpartition(".")[2] == part]
            close = [f"{path}{name}" for name in difflib.get_close_matches(part, keys, n=1)]
            guess = elsewhere or close
            mend = f"; did you mean {' or '.join(guess)}?" if guess else "."
            return f"there is no key '{path}{part}'{mend}\nThe keys here: {known}"
        schema, path = keys[part], f"{path}{part}."
    return None


def _all_keys(schema: Any, path: str = "") -> Iterator[str]:
    for field in dataclasses.fields(schema):
        yield f"{path}{field.name}"
        if dataclasses.is_dataclass(field.type):
            yield from _all_keys(field.type, f"{path}{field.name}.")


def as_overrides(arguments: Sequence[str], schema: Any) -> str | None:
    """Return what is wrong with arguments that aren't in Hydra's form: spaces around ``=``, or ``--key``."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument.startswith("=") or (before.endswith("=") and argument[:1] not in "-+~" and "=" not in argument):
            return f"expected no spaces around =, such as key=value, got '{before} {argument}'"
        key = argument.removeprefix("--").partition("=")[0]
        if argument.startswith("--") and any(key in (one, one.rpartition(".")[2]) for one in _all_keys(schema)):
            return f"expected key=value without dashes, such as {key}=..., got '{argument}'"
    return None


def unknown_option(override: Override, schema: Any, groups: Iterable[str]) -> str | None:
    """Return what is wrong with ``group=option`` if ``conf/`` lacks the option, with the options that it has."""
    group = override.key_or_group
    folder = Path(conf.__file__).parent / group
    if not (group in groups or dataclasses.is_dataclass(type_of(group, schema))) or not folder.is_dir():
        return None
    value: Any = override.value()
    chosen = value.list if override.is_choice_sweep() else value if isinstance(value, list) else [value]
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    for name in chosen:
        if override.is_delete():
            continue
        if name is None or str(name).removesuffix(".yaml") not in known:
            guess = difflib.get_close_matches(str(name), known, n=3)
            mend = f"; did you mean {' or '.join(guess)}?" if guess else "."
            return f"there is no {group} '{name}'{mend}\nThere are: {', '.join(known)}"
    return None


def _mend(key: str, expected: Any, error: HydraException) -> str:
    if get_origin(expected) in (list, tuple, dict):
        return f"each text in it needs its own quotes, \"{key}=['a=b']\""
    return f"{str(error).splitlines()[0].partition(' expecting')[0]}; expected {values.in_words(expected)}"


def type_of(key: str, schema: Any) -> Any:
    """Return the type of a key, or Any if the schema doesn't know it."""
    for part in key.split("."):
        if not dataclasses.is_dataclass(schema):
            return Any
        schema = {f.name: f.type for f in dataclasses.fields(schema)}.get(part, Any)
    return schema


def _is_text(expected: Any) -> bool:
    return expected is str or (isinstance(expected, types.UnionType) and str in get_args(expected))


def _may_be_text(expected: Any) -> bool:
    return expected is Any or _is_text(expected) or dataclasses.is_dataclass(expected)
