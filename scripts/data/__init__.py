"""Input data: data sets, their order, and their distortions."""
