"""The implementations of a deformable aggregation, in order of preference."""

from dcn_ops.aggregate.kernels import bag, cpu, gpu, inductor
from dcn_ops.aggregate.problem import Gradients, Problem
from dcn_ops.kernels import Registry

REGISTRY = Registry[Problem, Gradients](
    eager=(gpu, cpu, bag),
    # The compiler turns many small ATen kernels into a few loops. It can't trace the native kernel.
    traced=(gpu, inductor),
    missing="a package that is compiled ahead of time can't call the native kernel",
)
