"""deform_aggregate, the operator of DCNv3 and DCNv4: sums of samples, without a weight."""
