"""A model and its support tensors: inject, play, hold, merge, save."""
