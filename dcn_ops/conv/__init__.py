"""Deformable convolution (DCNv1, DCNv2): function, layer, contract, reference."""
