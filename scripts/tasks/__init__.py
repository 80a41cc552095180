"""What a network is trained for: loss and metrics."""
