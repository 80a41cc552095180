"""Implementations of the deformable convolution, and the choice of one for a call."""
