#!/usr/bin/env bash
# torch 2.14.1, CPU: an AOTInductor package returns wrong scores for an image with the right numbers in another order
# of memory, without an error.
#
# A good guess: a package takes any tensor of the exported shape, as the program that it was made of does; or it checks
# the strides and raises.
#
# What happens: the generated code reads the memory in the order of the example. Eager, torch.compile and the exported
# program give the right scores for the same tensor. With AOTI_RUNTIME_CHECK_INPUTS=1 in the environment the package
# raises; the variable is off unless it is set.
#
# Why it matters: decoders give [N, H, W, C], and a permute makes [N, C, H, W] of it without a copy. The class of a photo
# may then be wrong, with no sign of it. Call contiguous() first, or set the variable in tests.
#
# Output seen (Python 3.11, x86_64 Linux; the first three are near 1e-08):
#   eager: right
#   torch.compile: right
#   exported program: right
#   package, image as exported: right
#   package, other order of memory: wrong
#   package, other order of memory, inputs checked: RuntimeError
#
# Needs a C++ compiler, which Inductor calls.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.3.5

export OMP_NUM_THREADS=1 TORCHINDUCTOR_CACHE_DIR="$folder/inductor"
cat > "$folder/program.py" <<'PROGRAM'
import sys

import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
image = torch.randn(2, 3, 16, 16)
permuted = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as from [N, H, W, C]
assert torch.equal(permuted, image)
path, checked = sys.argv[1], sys.argv[2] == "checked"


@torch.no_grad()
def outcome(function, x):
    try:
        return "right" if torch.allclose(function(x), net(image), atol=1e-5) else "wrong"
    except RuntimeError as error:
        return type(error).__name__


if not checked:
    with torch.no_grad():
        program = torch.export.export(net, (image,))
        torch._inductor.aoti_compile_and_package(program, package_path=path)
    print("eager:", outcome(net, permuted))
    print("torch.compile:", outcome(torch.compile(net), permuted))
    print("exported program:", outcome(program.module(), permuted))
package = torch._inductor.aoti_load_package(path)
if not checked:
    print("package, image as exported:", outcome(package, image))
print(f"package, other order of memory{', inputs checked' * checked}:", outcome(package, permuted))
PROGRAM
{
  "$folder/venv/bin/python" "$folder/program.py" "$folder/net.pt2" as-it-is
  AOTI_RUNTIME_CHECK_INPUTS=1 "$folder/venv/bin/python" "$folder/program.py" "$folder/net.pt2" checked
} 2> "$folder/log" | tee "$folder/output"
diff - "$folder/output" <<'EXPECTED' || { echo "The behaviour has changed."; exit 1; }
eager: right
torch.compile: right
exported program: right
package, image as exported: right
package, other order of memory: wrong
package, other order of memory, inputs checked: RuntimeError
EXPECTED
