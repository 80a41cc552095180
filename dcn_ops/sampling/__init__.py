"""Code that operators share: geometry, bilinear sampling as embedding bags, the sizes of pieces."""
