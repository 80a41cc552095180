#!/usr/bin/env bash
# torch 2.14.1: what a program sets in torch.compiler.config or torch._dynamo.config holds for the thread that set it
# and for no other, not even for threads that start later.
#
# A good guess: these are modules, so an assignment such as torch._dynamo.config.recompile_limit = 32 at the start of
# a program holds for the whole process, as every other attribute of a module does.
#
# What happens: such an assignment sets a context variable (a comment of the class in torch.utils._config_module says
# "thread-local"). A thread that starts afterwards sees the values of the installation. There a convolution compiles
# for 8 sizes and runs without compilation for the other 8, whereas it compiles for all 16 in the main thread. The
# tag of the compile caches' key, torch.compiler.config.cache_key_tag, is empty there as well.
#
# Why it matters: a server that sets its limits and its cache tag at import and runs the network in worker threads
# compiles with other settings than it was tested with, for images of many sizes at the speed of eager mode, and under
# another cache key than the main thread that filled the cache. Running the work in
# contextvars.copy_context().run is the cure, and so is an environment variable where the setting has one.
#
# Output seen (Python 3.11, x86_64 Linux):
#   main thread: cache_key_tag='v2', recompile_limit=32, compilations for 16 sizes: 16
#   new thread: cache_key_tag='', recompile_limit=8, compilations for 16 sizes: 8
#   new thread with a copy of the context: cache_key_tag='v2', recompile_limit=32, compilations for 16 sizes: 16
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.3.5

export OMP_NUM_THREADS=1
"$folder/venv/bin/python" - <<'PROGRAM'
import contextvars
import logging
import threading

import torch

logging.disable(logging.CRITICAL)  # the warnings of the recompile limit
torch.compiler.config.cache_key_tag = "v2"
torch._dynamo.config.recompile_limit = 32


def compile_16_sizes(case, results):
    torch._dynamo.reset()
    compilations = []

    def backend(graph, example_inputs):
        compilations.append(graph)
        return graph.forward

    net = torch.compile(torch.nn.Conv2d(3, 4, 3), backend=backend, dynamic=False)
    for size in range(10, 26):
        net(torch.zeros(1, 3, size, size))
    tag, limit = torch.compiler.config.cache_key_tag, torch._dynamo.config.recompile_limit
    results.append((tag, limit, len(compilations)))
    print(f"{case}: cache_key_tag={tag!r}, recompile_limit={limit}, compilations for 16 sizes: {len(compilations)}")


def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join()


results = []
compile_16_sizes("main thread", results)
in_thread(compile_16_sizes, "new thread", results)
in_thread(contextvars.copy_context().run, compile_16_sizes, "new thread with a copy of the context", results)
if results != [("v2", 32, 16), ("", 8, 8), ("v2", 32, 16)]:
    raise SystemExit("The behaviour has changed.")
PROGRAM
