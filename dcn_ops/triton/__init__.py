"""Triton kernels of the operator, for GPUs. Only ``launch`` is for others; importing it imports triton."""
