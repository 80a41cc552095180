"""The implementations of a deformable convolution, in order of preference."""

from dcn_ops.conv.kernels import columns, cpu, depthwise, gpu, inductor, tiny, traced
from dcn_ops.conv.problem import Gradients, Problem
from dcn_ops.kernels import Registry
from dcn_ops.settings import current

REGISTRY = Registry[Problem, Gradients](
    eager=(gpu, cpu, tiny, depthwise, columns),
    # Compiled, many small ATen kernels become a few, and calls cost nothing. The native kernel can't be traced.
    traced=(gpu, inductor, depthwise, traced),
    missing="a package that is compiled ahead of time can't call the native kernel",
)


def calls_native(problem: Problem) -> bool:
    """Tell whether an eager call takes the native kernel, or must; a compiler's tensors, without data, will do."""
    implementation = current().implementation
    if implementation == "native":
        return True
    return cpu in REGISTRY.allowed(implementation, False) and cpu.refuses(problem) is None
