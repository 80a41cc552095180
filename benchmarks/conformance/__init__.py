"""What every runtime makes of a deformable convolution: the cases, the files, the processes, the table."""
