"""The stages of a run: train, search, polish, test."""
