"""Implementations of the deformable convolution, and which of them a call takes."""
