"""The private names of torch, each with the fallback for torch versions without it."""
