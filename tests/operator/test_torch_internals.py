"""Where a torch lacks one of its private names, the operator still runs, and its gradients are right."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# In a process of its own, in which this library alone does not find a name.
RUN = """
import sys, types
import torch

owner_name, _, name = sys.argv[1].rpartition(".")
hidden = []


class Without(types.ModuleType):
    def __init__(self, module):
        self.__dict__["_module"] = module

    def __getattr__(self, asked):
        if asked == name and sys._getframe(1).f_globals["__name__"].startswith("dcn_ops"):
            hidden.append(asked)
            raise AttributeError(f"hidden: {asked}")
        return getattr(self._module, asked)

    def __dir__(self):
        return dir(self._module)

    def __setattr__(self, asked, value):
        setattr(self._module, asked, value)


import importlib
importlib.import_module("torch.compiler.config")
owner = importlib.import_module(owner_name)
parent, _, own = owner_name.rpartition(".")
setattr(importlib.import_module(parent), own, Without(owner))
if owner_name not in ("torch._C", "torch.cpu", "torch.compiler", "torch.autograd.forward_ad"):
    sys.modules[owner_name] = Without(owner)  # for "from owner import name"

import dcn_ops
from dcn_ops.testing import CASES, assert_within_budget, make_inputs, oracle, run

op = torch.ops.dcn_ops.deform_conv2d.default
for case in CASES.values():
    inputs = make_inputs(case)
    assert_within_budget(run(op, inputs, **case.integers), *oracle(inputs, case.conv, torch.float32))
dcn_ops.conv.kernels.tiny.MAX_WORK = -1
for dtype in (torch.bfloat16, torch.float16):
    half = make_inputs(CASES["plain"], dtype)
    assert_within_budget(run(op, half, **CASES["plain"].integers), *oracle(half, CASES["plain"].conv, dtype))
with torch.autocast("cpu", torch.bfloat16):
    assert op(*make_inputs(CASES["all"]), **CASES["all"].integers).dtype == torch.bfloat16
with dcn_ops.settings(implementation="composition"):
    function = torch.compile(op, fullgraph=True, backend="aot_eager")
    inputs = make_inputs(CASES["all"])
    assert_within_budget(
        run(function, inputs, **CASES["all"].integers), *oracle(inputs, CASES["all"].conv, torch.float32)
    )
print("asked" if hidden else "never asked")
"""

# Every private name that the operator uses, as dcn_ops.torch_internals has them.
NAMES = [
    "torch._C.DispatchKey",
    "torch._C.DispatchKeySet",
    "torch._C._AutoDispatchBelowADInplaceOrView",
    "torch._C._after_ADInplaceOrView_keyset",
    "torch._C._dispatch_key_for_device",
    "torch._C._dispatch_has_kernel_for_dispatch_key",
    "torch._C._are_functorch_transforms_active",
    "torch.autograd.forward_ad._current_level",
    "torch.cpu._is_avx512_bf16_supported",
    "torch.cpu._is_amx_fp16_supported",
    "torch._subclasses.functional_tensor.FunctionalTensorMode",
    "torch.compiler.config.cache_key_tag",
    "torch.compiler.config._config",
    "torch.export._trace.custom_triton_ops_decomposition_disabled",
]


@pytest.mark.parametrize("name", NAMES)
def test_without_a_private_name_of_torch_the_operator_still_runs(name: str) -> None:
    command = [sys.executable, "-c", RUN, name]
    # The native kernel would hide what the composition asks.
    environment = {**os.environ, "DCN_OPS_NATIVE": "0"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.stdout.splitlines()[-1:] == ["asked"], result.stderr
