"""Sparse matrices, without torch's warning that they are in beta."""

import warnings
from functools import cache

import torch
from torch import Tensor


def sparse_rows(firsts: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a sparse CSR matrix of ``size``, whose indices are not checked.

    Args:
        firsts: Where the entries of each row begin, and the number of all, [rows + 1].
        columns: Column of each entry, in any order, and as often as the caller likes, [entries].
        values: [entries].
        size: Rows and columns.
    """
    _warn_now()
    return torch.sparse_csr_tensor(firsts, columns, values, size, check_invariants=False)


@cache
def _warn_now() -> None:
    """Drop torch's warning that CSR is in beta, which it gives once in a process: users make no such matrix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0], [], [], (0, 0), check_invariants=False)
