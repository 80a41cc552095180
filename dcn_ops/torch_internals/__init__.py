"""The private names of torch, each with what happens where it is missing."""
