"""The registry of ``torch.onnx.export(dynamo=True)``; torch has no public function to extend it.

Without these names the exporter has no translation, and says so. Then export a program that was decomposed with
``dcn_ops.decompositions()``.
"""

import logging
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_log = logging.getLogger(__name__)

# The module that registers torch's own translations to ONNX at the first export of a process. It imports
# onnxscript, which takes a second.
_ONNX_TRANSLATIONS = "torch.onnx._internal.exporter._torchlib.ops"


def translate_to_onnx(op: Any, translation: Callable[..., Any], opset: int, below: Callable[..., Any]) -> None:
    """Give ``torch.onnx.export(dynamo=True)`` a translation from ``opset`` on, and a decomposition below it."""

    def add() -> None:
        from torch.onnx._internal.exporter._torchlib._torchlib_registry import onnx_impl

        onnx_impl(op, trace_only=True, opset_introduced=opset)(translation)
        _decompose(op, below)

    _when_imported(op, add)


def decompose_in_onnx(op: Any, decomposition: Callable[..., Any]) -> None:
    """Make ``torch.onnx.export(dynamo=True)`` decompose an operator that ONNX doesn't have."""
    _when_imported(op, lambda: _decompose(op, decomposition))


def _decompose(op: Any, decomposition: Callable[..., Any]) -> None:
    # If the registry has no translation for the requested opset, the exporter decomposes with a table that it
    # derives from torch's own. We don't change torch's own table: fake tensors with symbolic sizes would use it and
    # get other strides. And if CI is set in the environment, Inductor accepts no whole operator that is in it.
    from torch.onnx._internal.exporter import _decomp

    make_table = _decomp.create_onnx_friendly_decomposition_table

    def with_ours(registered: Any) -> dict[Any, Any]:
        ours = {} if op in registered else {op: decomposition}
        return {**ours, **make_table(registered)}

    _decomp.create_onnx_friendly_decomposition_table = with_ours  # type: ignore[assignment]


def _when_imported(op: Any, add: Callable[[], None]) -> None:
    def register(_: ModuleType) -> None:
        try:
            add()
        except (
            ImportError,
            AttributeError,
            TypeError,
        ) as error:  # an error here must not break the import of torch's module
            _log.warning("%s has no translation to ONNX with this torch (%s); decompose it first", op, error)

    after_import(_ONNX_TRANSLATIONS, register)


def after_import(name: str, function: Callable[[ModuleType], None]) -> None:
    """Call ``function`` with a module once it is imported: now, or at its first import."""
    if name in sys.modules:
        function(sys.modules[name])
        return
    waiting = (finder for finder in sys.meta_path if isinstance(finder, _AfterImport) and finder.name == name)
    finder = next(waiting, None)
    if finder is None:  # one per name: two of them would call each other forever
        finder = _AfterImport(name)
        sys.meta_path.insert(0, finder)
    finder.functions.append(function)


class _AfterImport(MetaPathFinder):
    def __init__(self, name: str) -> None:
        self.name = name
        self.functions: list[Callable[[ModuleType], None]] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                sys.meta_path.remove(self)
                for function in self.functions:
                    function(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
