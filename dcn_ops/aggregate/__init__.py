"""deform_aggregate, the operator of DCNv3 and DCNv4: it sums samples and has no weight tensor."""
