"""The CPU kernels in C++, of all operators: their sources, how they are built on first use, and the library."""
