"""The implementations of a deformable convolution, in order of preference."""

from dcn_ops.conv.kernels import columns, cpu, depthwise, gpu, gpu_in_order, inductor, tiny, traced
from dcn_ops.conv.problem import Gradients, Problem
from dcn_ops.kernels import Registry

REGISTRY = Registry[Problem, Gradients](
    eager=(gpu, cpu, tiny, depthwise, columns),
    # Compiled, many small ATen kernels become a few, and calls cost nothing. The native kernel can't be traced.
    traced=(gpu, inductor, depthwise, traced),
    repeating=(gpu_in_order,),
    missing="a package that is compiled ahead of time can't call the native kernel",
)
