"""Implementations of deform_aggregate, and the choice of one for a call."""
