"""The stages of a run, in their order: train, search, polish, test. Only `test.py` is given a test example."""
