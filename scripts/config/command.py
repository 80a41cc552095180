"""Shared by the console commands: schemas for Hydra, suggestions for mistyped arguments, one-line errors."""

import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, cast

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf

from . import options, overrides, values
from .schema import Bench, Evaluate, Export, Migrate, Predict, Share, Train, Visualize

_SCHEMAS = {
    "train_schema": Train,
    "bench_schema": Bench,
    "export_schema": Export,
    "migrate_schema": Migrate,
    "visualize_schema": Visualize,
    "evaluate_schema": Evaluate,
    "predict_schema": Predict,
    "share_schema": Share,
}
# The commands' configs: the package, and the name in it.
_CONFIGS = {
    Train: ("zoo.conf", "train"),
    Bench: ("zoo.conf", "bench"),
    Export: ("zoo.conf.deploy", "export"),
    Migrate: ("zoo.conf.deploy", "migrate"),
    Visualize: ("zoo.conf", "visualize"),
    Evaluate: ("zoo.conf", "evaluate"),
    Predict: ("zoo.conf", "predict"),
    Share: ("zoo.conf", "share"),
}
# Config groups without their own field.
_GROUPS: dict[type, tuple[str, ...]] = {Train: ("experiment",)}


@functools.cache  # Hydra warns about a second registration
def register() -> None:
    """Register the schemas where ``conf/`` finds them."""
    store = ConfigStore.instance()
    for name, schema in _SCHEMAS.items():
        store.store(name=name, node=schema)


def prepare(schema: type) -> None:
    """Register the schemas and check ``sys.argv``, before Hydra reads it; or print the help and exit."""
    register()
    check_overrides(schema)
    if {"--help", "-h"} & set(sys.argv[1:]):
        _help(schema)
    check_run_folder()


def check_run_folder() -> None:
    """Exit with one line if Hydra couldn't write into the folder that the user names."""
    key = "hydra.run.dir="
    given = [argument for argument in sys.argv[1:] if argument.startswith(key)]
    if not given or "${" in given[-1] or any(argument.startswith("-") for argument in sys.argv[1:]):
        return
    folder = str(overrides.parse(given[-1]).value())
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        sys.exit(f"error: can't write into {key}{folder}: {error.strerror}; name another folder")


def _help(schema: type) -> NoReturn:
    """Print the options with the values that the other arguments give them."""
    package, name = _CONFIGS[schema]
    given = [argument for argument in sys.argv[1:] if overrides.is_override(argument)]
    with errors_in_one_line(HydraException), initialize_config_module(package, version_base="1.3"):
        config = compose(name, overrides=given)
    options.show_help(f"dcn-{name}", schema, config, _GROUPS.get(schema, ()))
    sys.exit(0)


@contextmanager
def errors_in_one_line(*kinds: type[Exception], left: str = "complete") -> Iterator[None]:
    """Exit with one line for errors that the user can fix, and for Ctrl-C with the status 130.

    Under ``HYDRA_FULL_ERROR=1`` errors keep their stack.

    Args:
        *kinds: Further errors that the user can fix.
        left: What the files are that an interrupted command leaves.
    """
    expected: tuple[type[Exception], ...] = (ValueError, OSError, *kinds)
    try:
        yield
    except KeyboardInterrupt as stopped:  # with a message if it is SIGTERM
        print(f"{str(stopped) or 'interrupted'}; files with their final name are {left}", file=sys.stderr)
        sys.exit(143 if str(stopped) else 130)
    except expected as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        remove_unused_run_folder()
        sys.exit(f"error: {error}")


def remove_unused_run_folder() -> None:
    """Remove the run's folder, which Hydra makes first, if it has nothing but Hydra's records and the log."""
    if not HydraConfig.initialized() or (config := HydraConfig.get()).output_subdir is None:
        return
    folder = Path(config.runtime.output_dir)
    if {path.name for path in folder.iterdir()} <= {config.output_subdir, f"{config.job.name}.log"}:
        shutil.rmtree(folder, ignore_errors=True)


def compose_train(*arguments: str) -> Train:
    """Return the config that ``dcn-train`` with these arguments would run."""
    register()
    with initialize_config_module("zoo.conf", version_base="1.3"):
        return cast(Train, OmegaConf.to_object(compose("train", overrides=list(arguments))))


def check_overrides(schema: type) -> None:
    """Make Hydra accept the command line as it is, or exit with suggestions for a wrong key, option or value.

    Values that Hydra accepts only in quotes get quotes in ``sys.argv``.
    """
    arguments, groups = sys.argv[1:], _GROUPS.get(schema, ())
    if problem := overrides.as_overrides(arguments, schema):
        sys.exit(f"error: {problem}")
    for group in groups:
        arguments = _without_null(arguments, group)
    sweep = bool({"-m", "--multirun"} & set(arguments))
    # With configs of the user's own there may be options that we don't know.
    foreign = any(a.startswith(("--config-dir", "-cd", "hydra.searchpath")) for a in arguments)
    for index, argument in enumerate(arguments):
        if not overrides.is_override(argument):
            continue
        try:
            arguments[index] = overrides.quoted(argument, schema, sweep)
            override = overrides.parse(arguments[index])
        except ValueError as error:
            sys.exit(f"error: {error}")
        except HydraException as error:
            sys.exit(f"error: can't read '{argument}': {str(error).splitlines()[0]}")
        key = override.key_or_group
        if key.split("/")[0] == "hydra" or key.split(".")[0] == "hydra":
            continue
        problem = None if key.split("/")[0] in groups else overrides.unknown_key(key, schema)
        if not (problem or foreign):
            problem = overrides.unknown_option(override, schema, groups)
        expected = overrides.type_of(key, schema)
        if problem := problem or values.wrong(argument, override, expected):
            sys.exit(f"error: {problem}")
        arguments[index] = values.rewritten(arguments[index], override, expected)
    sys.argv[1:] = arguments


def _without_null(arguments: Sequence[str], group: str) -> list[str]:
    """Write ``group=null`` as ``~group``, as Hydra needs it; of several choices of the group the last counts."""
    chosen = [argument for argument in arguments if argument.startswith(f"{group}=")]
    if f"{group}=null" not in chosen:
        return list(arguments)
    kept = [argument for argument in arguments if argument not in chosen]
    return [*kept, f"~{group}" if chosen[-1] == f"{group}=null" else chosen[-1]]
