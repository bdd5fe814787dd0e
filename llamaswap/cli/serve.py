"""`serve` and `demo`: start the server by a command instead of flags."""

from __future__ import annotations

import click
from twisted.application.twist._twist import Twist

from llamaswap.cli.flags import main


@click.command()
@click.option("--listen", default="127.0.0.1:8080", show_default=True, help="host:port or :port.")
def demo(listen: str) -> None:
    """Run two tiny built-in models to try a swap."""
    Twist.main(["twist", "llamaswap", "--demo", "--listen", listen])


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def serve(flags: tuple[str, ...]) -> None:
    """Start the server with these flags.

    llamaswap -h lists them; they are the same without this word.
    """
    main(flags)
