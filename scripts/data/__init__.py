"""What is read: data sets, their order, and their distortions."""
