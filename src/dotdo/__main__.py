"""`python -m dotdo`: the command line."""

from dotdo.cli import main

if __name__ == "__main__":
    main()
