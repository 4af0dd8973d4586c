"""`python -m glora`."""

from glora.cli.app import main

if __name__ == "__main__":
    main()
