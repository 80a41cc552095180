"""benchmarks/heads.py: what it runs again, and what its table says."""

from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import heads

    return heads


def row(
    commit: str, reason: str | None = None, dynamic: str = "size", objects: int | None = None
) -> dict[str, Any]:
    about = {"commit": commit, "versions": {"torch": "2.14.1"}}
    return {"reason": reason, "dynamic": dynamic, "objects": objects, "relative": 1.2e-6, "about": about}


def test_a_target_that_failed_is_run_with_less_dynamic_sizes_only(heads: Any) -> None:
    found = {"unet onnx": row("a"), "unet openvino": row("a", "ValueError: no")}
    missing = {
        (target, dynamic): heads.is_missing("unet", target, dynamic, found, again=False)
        for target in ("onnx", "openvino", "torchscript")
        for dynamic in ("size", "batch")
    }
    assert [pair for pair, is_missing in missing.items() if is_missing] == [
        ("openvino", "batch"), ("torchscript", "size"), ("torchscript", "batch"),
    ]  # fmt: skip
    assert heads.is_missing("unet", "openvino", "size", found, again=True)
    assert not heads.is_missing("unet", "aoti", "size", {}, again=False)  # it would compile for many minutes


def test_the_table_names_the_commits_of_all_its_rows(heads: Any) -> None:
    found = {
        "unet onnx": row("aaa"),
        "unet openvino": row("bbb", "ValueError: no Resize"),
        "fcos aoti": row("aaa", dynamic="batch", objects=2000),
    }
    lines = heads.table(found).splitlines()
    assert "| Unet | 1e-06, any size | no: no Resize | not run | not run |" in lines
    assert "| FCOS | not run | not run | not run | 1e-06, 2000 objects, any batch |" in lines
    assert lines[-1].endswith("commits aaa, bbb; torch 2.14.1.)")
