#!/usr/bin/env bash
# torch 2.14.1: torch.export.export raises IndexError for a module with several buffers that are None before a real one.
#
# A good guess: register_buffer(name, None) is documented, and BatchNorm without running statistics uses it. Such a
# buffer has no part in the exported program.
#
# What happens: non-strict export numbers all buffers of the module, but looks the numbers up in a list of those that
# are tensors. While the list, which goes on with the inputs, is long enough, nothing shows. With three None before a
# tensor and one input it ends: "list index out of range". strict=True exports the module, and so does the same module
# with its buffers in the other order.
#
# Why it matters: optional constants are registered like this so that state_dict and .to() know them. The message names
# no buffer, and a module with one optional constant less is exported.
#
# Output seen (Python 3.11, x86_64 Linux):
#   None, None, None, tensor: eager runs
#   None, None, None, tensor: export IndexError
#   None, None, None, tensor: export with strict=True right
#   tensor, None, None, None: export right
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.3.5

cat > "$folder/program.py" <<'PROGRAM'
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, names):
        super().__init__()
        for name in names:
            self.register_buffer(name, torch.tensor(3.0) if name == "scale" else None)

    def forward(self, x):
        for name in ("scale", "shift", "low", "high"):
            value = getattr(self, name)
            if value is not None:
                x = x * value
        return x


def outcome(net, **options):
    x = torch.ones(2)
    try:
        program = torch.export.export(net, (x,), **options)
    except IndexError as error:
        return type(error).__name__
    return "right" if torch.equal(program.module()(x), net(x)) else "wrong"


last, first = Net(("shift", "low", "high", "scale")), Net(("scale", "shift", "low", "high"))
assert torch.equal(last(torch.ones(2)), torch.full((2,), 3.0))
print("None, None, None, tensor: eager runs")
seen = [outcome(last, strict=False), outcome(last, strict=True), outcome(first, strict=False)]
print(f"None, None, None, tensor: export {seen[0]}")
print(f"None, None, None, tensor: export with strict=True {seen[1]}")
print(f"tensor, None, None, None: export {seen[2]}")
if seen != ["IndexError", "right", "right"]:
    raise SystemExit("The behaviour has changed.")
PROGRAM
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore "$folder/program.py"
