#!/usr/bin/env bash
# torch 2.14.1 with gcc 12: an extension that torch.utils.cpp_extension.load_inline builds again in the same process, from
# changed source, still reads the constants of the first build.
#
# A good guess: load_inline sees that the source has changed, builds a second library under a new name (tiles_v1), and
# imports it. Python loads extensions with RTLD_LOCAL, so that their symbols don't mix: the new functions return the new
# numbers.
#
# What happens: a static variable in an inline function gets gcc's binding STB_GNU_UNIQUE. The loader keeps one such
# variable for the whole process, RTLD_LOCAL or not, and the first library that was loaded wins. The new code runs on
# the old table, without a word. A new process gives the right numbers. clang doesn't use that binding.
#
# Why it matters: who tunes tile sizes or a table of kernels in a notebook measures the old ones. A table of function
# pointers even calls the old functions. Compile with -fvisibility=hidden or -fno-gnu-unique, or start a new process.
#
# Output seen (Python 3.11, x86_64 Linux, g++ 12.2):
#   tiles: 16 32
#   tiles_v1, of changed source: 16 32
#   tiles_v2, of changed source, with -fvisibility=hidden: 128 256
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.3.5 ninja==1.13.0 setuptools==80.9.0

cat > "$folder/program.py" <<'PROGRAM'
from torch.utils.cpp_extension import load_inline

SOURCE = """
inline const int64_t* tile_sizes() {{
  static const int64_t sizes[] = {{{first}, {second}}};
  return sizes;
}}
int64_t tile_size(int64_t i) {{ return tile_sizes()[i]; }}
"""


def built(first, second, flags=()):
    source = SOURCE.format(first=first, second=second)
    module = load_inline("tiles", source, functions="tile_size", extra_cflags=list(flags))
    return module.__name__, [module.tile_size(i) for i in range(2)]


name, sizes = built(16, 32)
print(f"{name}: {sizes[0]} {sizes[1]}")
name, again = built(128, 256)
print(f"{name}, of changed source: {again[0]} {again[1]}")
name, hidden = built(128, 256, ["-fvisibility=hidden"])
print(f"{name}, of changed source, with -fvisibility=hidden: {hidden[0]} {hidden[1]}")
assert again == sizes == [16, 32], "the rebuilt extension has its own table: this finding is out of date"
assert hidden == [128, 256]
PROGRAM
export PATH="$folder/venv/bin:$PATH" TORCH_EXTENSIONS_DIR="$folder/extensions" CXX=g++
"$folder/venv/bin/python" -W ignore "$folder/program.py"
