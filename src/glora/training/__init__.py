"""The only training loop, and what it computes on."""
