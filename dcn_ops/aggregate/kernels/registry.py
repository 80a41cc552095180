"""The implementations of a deformable aggregation, in order of preference."""

from dcn_ops.aggregate.kernels import bag, cpu, inductor
from dcn_ops.aggregate.problem import Gradients, Problem
from dcn_ops.kernels import Registry

REGISTRY = Registry[Problem, Gradients](
    eager=(cpu, bag),
    # The compiler turns many small ATen kernels into a few loops. It can't trace the native kernel.
    traced=(inductor,),
    missing="deform_aggregate has no implementation {}; take another",
)
