"""Combinations that a runtime computes wrongly or doesn't have, by the table of docs/runtimes.md."""

from dataclasses import dataclass

# Below it ONNX has no DeformConv, and the file has GridSample.
DEFORM_CONV_OPSET = 19


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked of a target; the fields of the config."""

    target: str
    dynamic: str
    dtype: str
    int8: bool
    decompose: bool
    opset: int


def check(wish: Wish) -> None:
    """Raise ValueError, with the reason and the cure, if the runtime of the target is known to fail."""
    for applies, reason in _reasons(wish):
        if applies:
            raise ValueError(reason)


def _reasons(wish: Wish) -> list[tuple[bool, str]]:
    of_onnx, of_openvino = wish.target == "onnx", wish.target == "openvino"
    decomposed = wish.decompose or wish.opset < DEFORM_CONV_OPSET
    return [
        (
            wish.target == "torchscript" and wish.decompose and wish.dynamic != "none",
            f"a decomposed TorchScript trace has constant sizes: use dynamic=none, got dynamic={wish.dynamic!r}",
        ),
        (
            of_onnx and wish.dtype == "bfloat16",
            "ONNX Runtime 1.32 has no DeformConv and no Conv in bfloat16: use dtype=float16 or float32, "
            f"got dtype={wish.dtype!r}",
        ),
        (
            of_openvino and wish.dtype == "bfloat16",
            "OpenVINO 2026.4 gives wrong scores for a bfloat16 program (errors as large as the scores): use "
            f"dtype=float16 or float32, got dtype={wish.dtype!r}",
        ),
        (
            of_onnx and wish.int8 and decomposed,
            "int8 would quantise the offsets of a decomposed file, by whole pixels: use decompose=false and "
            f"opset={DEFORM_CONV_OPSET} or later, got decompose={wish.decompose} and opset={wish.opset}",
        ),
    ]
