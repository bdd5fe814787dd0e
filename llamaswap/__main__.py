"""`python -m llamaswap` and the `llamaswap` command."""

from llamaswap import early_signals

early_signals.catch()  # before the other imports, which take most of the time in which a signal would end the process

from llamaswap.cli import main  # noqa: E402

__all__ = ["main"]

if __name__ == "__main__":
    main()
