#!/usr/bin/env bash
# torchmetrics 1.9.0: MeanMetric(nan_strategy="disable") ignores the weights that it is given, without a word.
#
# A good guess: the strategy says what to do with NaN alone; "disable" leaves out the check, and a weighted mean stays
# weighted. The documentation of update() promises weights for every strategy.
#
# What happens: the method that casts and checks value and weight replaces the weight by ones where the check is off.
# Every other strategy weighs right. Who averages the loss of batches of different sizes gets the mean of the batches.
#
# Why it matters: "disable" is the one choice that lets NaN through (by default they are left out) and needs no
# synchronisation of a GPU for the check: what a training loop wants. Give it the values of single images instead.
#
# Output seen (Python 3.11, x86_64 Linux); the right mean is (1 * 3 + 5 * 1) / 4 = 2:
#   warn: 2.0
#   ignore: 2.0
#   error: 2.0
#   0.0: 2.0
#   disable: 3.0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchmetrics==1.9.0 numpy==2.3.5

cat > "$folder/program.py" <<'PROGRAM'
import torch
from torchmetrics import MeanMetric

found = {}
for strategy in ("warn", "ignore", "error", 0.0, "disable"):
    metric = MeanMetric(nan_strategy=strategy)
    metric.update(torch.tensor(1.0), weight=3)
    metric.update(torch.tensor(5.0), weight=1)
    found[strategy] = metric.compute().item()
    print(f"{strategy}: {found[strategy]}")
assert found.pop("disable") == 3.0, "weights count now: this finding is out of date"
assert set(found.values()) == {2.0}
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
