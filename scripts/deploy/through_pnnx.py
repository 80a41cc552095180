"""ncnn's two files, written by pnnx from a trace: a text file .param with the layers, and .bin with the weights."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn


def write(module: nn.Module, images: Tensor, file: Path) -> None:
    """Convert a module to ``file`` (NAME.param) and NAME.bin beside it.

    Args:
        module: In core ATen, with constant sizes.
        images: An example [1, C, H, W]; ncnn's tensors have no batch.
        file: The text file.

    Raises:
        RuntimeError: If pnnx fails, or writes layers that ncnn lacks.
    """
    import pnnx

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        torch.jit.trace(module, images, check_trace=False).save(place / "net.pt")
        shape = str(list(images.shape)).replace(" ", "")
        # By default pnnx rounds weights to float16.
        command = [pnnx.EXEC_PATH, "net.pt", f"inputshape={shape}", "fp16=0"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise RuntimeError(f"pnnx failed with exit code {done.returncode}: {' '.join(last)}")
        if foreign := _foreign(place / "net.ncnn.param"):
            raise RuntimeError(f"ncnn has no layer for {', '.join(foreign)}, which pnnx left as they are")
        shutil.copy(place / "net.ncnn.bin", file.with_suffix(".bin"))
        shutil.copy(place / "net.ncnn.param", file)


def _foreign(file: Path) -> list[str]:
    """Return the types of layers that are not ncnn's: pnnx leaves those of torch, with exit code 0."""
    types = {line.split()[0] for line in file.read_text().splitlines()[2:] if line.strip()}
    return sorted(kind for kind in types if "." in kind or ":" in kind)
