"""Where an image is: a file, or a cell of a Hugging Face data set."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Cell:
    """An image in a row of a Hugging Face data set, whose column gives undecoded images."""

    dataset: Any = field(compare=False, repr=False)
    name: str  # of the data set and its split, for error messages
    index: int
    column: str

    def __str__(self) -> str:
        return f"{self.name}[{self.index}].{self.column}"

    def open(self) -> Image.Image:
        """Return the image, not yet decoded."""
        value = self.dataset[self.index][self.column]
        if value is None:
            raise FileNotFoundError(f"{self} is empty")
        return Image.open(io.BytesIO(value["bytes"]) if value["bytes"] is not None else value["path"])


Source = Path | Cell


def opened(source: Source) -> Image.Image:
    """Return an image, not yet decoded.

    Raises:
        FileNotFoundError: If it doesn't exist.
    """
    return source.open() if isinstance(source, Cell) else Image.open(source)
