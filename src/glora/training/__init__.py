"""The only training loop (`trainer.py`), PACE inside it (`pace.py`), and what it computes on (`device.py`)."""
