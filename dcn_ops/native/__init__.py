"""The CPU kernel in C++: its sources, how they are built on first use, and the library that comes of it."""
