"""Triton kernels for GPUs: import nothing of this without Triton."""
