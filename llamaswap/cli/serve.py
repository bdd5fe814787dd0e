"""`serve` and `demo`: start the server by a command instead of flags."""

from __future__ import annotations

from pathlib import Path

import click
from twisted.application.twist._twist import Twist

from llamaswap.cli.flags import DEFAULT_CONFIG, main
from llamaswap.demo import begun_by_demo


@click.command()
@click.option("--listen", default="127.0.0.1:8080", show_default=True, help="host:port or :port.")
@click.option(
    "--allow-config-edit",
    is_flag=True,
    help="Write the demo's config.yaml here, for the page to change; one that is here already goes on.",
)
def demo(listen: str, allow_config_edit: bool) -> None:
    """Run two tiny built-in models to try a swap."""
    config = Path(DEFAULT_CONFIG)
    if allow_config_edit and config.exists() and not begun_by_demo(config.read_bytes()):
        raise click.ClickException(
            f"{DEFAULT_CONFIG} exists here, and the demo would write it; use another folder, or start "
            "`llamaswap serve --allow-config-edit` with that file"
        )
    # Without a configuration file this flag begins with the demo's.
    Twist.main(["twist", "llamaswap", "--allow-config-edit" if allow_config_edit else "--demo", "--listen", listen])


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def serve(flags: tuple[str, ...]) -> None:
    """Start the server with these flags.

    llamaswap -h lists them; they are the same without this word.
    """
    main(flags)
