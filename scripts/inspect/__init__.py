"""What a network does with images: accuracy, sampling locations, receptive fields."""
