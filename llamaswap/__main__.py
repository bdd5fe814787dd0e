"""`python -m llamaswap`: the same as the `llamaswap` command."""

from llamaswap.cli import main

if __name__ == "__main__":
    main()
