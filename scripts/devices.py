"""The device that the user names."""

import difflib

import torch

# What people call a device of torch.
_MEANT = {"gpu": "cuda", "nvidia": "cuda", "amd": "cuda", "rocm": "cuda", "metal": "mps", "apple": "mps"}
_COMMON = ("auto", "cpu", "cuda", "mps", "xpu")


def chosen(name: str) -> torch.device:
    """Return a device that exists.

    Args:
        name: As torch names it, such as "cuda:1"; "auto" is a CUDA GPU if there is one, else the CPU.

    Raises:
        ValueError: If torch doesn't know it, or this machine has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = name.partition(":")[0].lower()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        meant = _MEANT.get(kind) or next(iter(difflib.get_close_matches(kind, _COMMON, n=1)), None)
        mend = f"did you mean device={meant}?" if meant else f"expected one of {', '.join(_COMMON)}"
        if meant and meant != "auto" and _missing(torch.device(meant)):
            mend += f" This machine has no {meant}: device=auto takes what there is"
        raise ValueError(f"there is no device={name}; {mend}") from error
    if lack := _missing(device):
        reason = str(lack).splitlines()[0]
        raise ValueError(f"there is no device={name} on this machine: {reason}; set device=auto or cpu") from lack
    return device


def _missing(device: torch.device) -> Exception | None:
    """Return torch's error if this machine has no such device."""
    try:
        torch.empty(1, device=device).cpu()  # the device "meta" has no data to copy
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return error
    return None
