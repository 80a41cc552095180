"""Exporters, other runtimes and FLOP counters."""
