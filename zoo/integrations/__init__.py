"""What other libraries need to know of deformable layers. Each module is imported by those who use its library."""
