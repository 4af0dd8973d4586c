"""The command line: commands (`app.py`), their options made from the settings (`options.py`), lists (`listing.py`)."""
