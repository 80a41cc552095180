"""What is to be measured on a GPU, in one command: python benchmarks/gpu.py.

Runs the tests that need a GPU, and only if they pass the cases and networks, each beside its peers; the numbers and
the bounds, met or missed, go to benchmarks/results/cuda-*.json.
"""

import subprocess
import sys

import torch

PROVIDERS = "[conv2d,eager,compiled,composition,torchvision,deformops]"
COMMANDS = [
    ["pytest", "-m", "cuda", "-q"],
    ["scripts.bench", "device=cuda", "suite=gpu", f"providers={PROVIDERS}"],
    ["scripts.bench", "device=cuda", "suite=models", "models=[resnet50]", "batch=64"],
]


def main() -> None:
    """Run the commands in order; stop at the first that fails."""
    if not torch.cuda.is_available():
        sys.exit("error: torch.cuda finds no GPU; on the CPU: dcn-bench suite=op")
    for command in COMMANDS:
        print("+", *command, flush=True)
        if code := subprocess.run([sys.executable, "-m", *command], check=False).returncode:
            sys.exit(code)


if __name__ == "__main__":
    main()
