"""Implementations of deform_aggregate, and which one a call takes."""
