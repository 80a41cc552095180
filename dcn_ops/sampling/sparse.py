"""Products of rows as a sparse matrix product, which the compiler can't trace.

Legend: D channels per row, R rows, B sums.
"""

import warnings
from functools import cache

import torch
from torch import Tensor


def prefers_sparse(rows: Tensor) -> bool:
    """Tell where a sparse product takes less time than a bag's backward: rows of 8 floats are vectors to it."""
    return rows.device.type == "cpu" and rows.dtype == torch.float32 and rows.shape[1] >= 8


def sparse_products(grad: Tensor, rows: Tensor, row: Tensor, entries: int) -> Tensor:
    """Return the products of the rows that each sum reads, ``entries`` per sum, and the gradient of the sum.

    They are the product of grad [B, D] and the transposed rows [D, R], at the places of a sparse matrix. The bag's
    own backward calls BLAS for each entry, which takes 1.1 to 5 times as long.
    """
    _warn_now()
    firsts = torch.arange(0, row.shape[0] + 1, entries, dtype=row.dtype, device=row.device)
    size = grad.shape[0], rows.shape[0]
    places = torch.sparse_csr_tensor(firsts, row, grad.new_zeros(row.shape[0]), size, check_invariants=False)
    return torch.sparse.sampled_addmm(places, grad, rows.T, beta=0, out=places).values()


@cache
def _warn_now() -> None:
    """Drop torch's warning that CSR is in beta, which it gives once in a process: users make no such matrix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0], [], [], (0, 0), check_invariants=False)
