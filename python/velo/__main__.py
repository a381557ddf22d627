"""`python -m velo` is the `velo` command."""

from velo.cli import main

if __name__ == "__main__":
    main()
