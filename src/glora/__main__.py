"""`python -m glora`."""

from glora.cli import main

if __name__ == "__main__":
    main()
