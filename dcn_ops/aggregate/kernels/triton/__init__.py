"""Triton kernels for GPUs. Importing this package needs Triton."""
