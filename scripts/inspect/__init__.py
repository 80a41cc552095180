"""Inspection of a network on images: accuracy, sampling locations, receptive fields."""
