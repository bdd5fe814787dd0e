"""All subcommands of `llamaswap` in one click group; each is imported when it is used."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module

import click

COMMANDS: Mapping[str, tuple[str, str]] = {
    "agent": ("hosts", "agent"),
    "bench": ("bench", "bench"),
    "check": ("check", "check"),
    "completion": ("command_group", "completion"),
    "demo": ("serve", "demo"),
    "estimate": ("estimate", "estimate"),
    "help": ("command_group", "help_"),
    "hosts": ("hosts", "hosts"),
    "import": ("init", "take_over"),
    "init": ("init", "init"),
    "lease": ("lease", "lease"),
    "keys": ("keys", "keys"),
    "load": ("models", "load"),
    "logs": ("logs", "logs"),
    "memory": ("memory", "memory"),
    "pin": ("models", "pin"),
    "ps": ("models", "ps"),
    "pull": ("pull", "pull"),
    "reload": ("upgrade", "reload"),
    "rm": ("config_edit", "rm"),
    "run": ("chat", "run"),
    "serve": ("serve", "serve"),
    "service": ("service", "service"),
    "show": ("models", "show"),
    "simulate": ("simulate", "simulate"),
    "top": ("top", "top"),
    "unload": ("models", "unload"),
    "wol": ("wol", "wol"),
    "upgrade": ("upgrade", "upgrade"),
}
"""Name -> (module of this package, attribute)."""
ALIASES: Mapping[str, tuple[str, ...]] = {
    "chat": ("run",),
    "list": ("ps", "--all"),
    "ls": ("ps", "--all"),
    "start": ("load",),
    "status": ("ps",),
    "stop": ("unload",),
}
"""Names that other programs have for a command -> the command and its first options."""
ELSEWHERE: Mapping[str, str] = {
    "doctor": "llamaswap check finds what is wrong with a configuration",
    "usage": "the page Usage, or GET /api/usage, shows who used what",
    "version": "llamaswap -version shows it",
    "why": "the page of a request says where its time went, and GET /api/plan?model=NAME what a load would unload",
}
"""Words that are tried as commands -> what shows that instead."""
COMPLETE = "_LLAMASWAP_COMPLETE"
WANTS_JSON = "llamaswap.json"  # in the context's meta: whether the words have --json


class UnknownCommand(click.ClickException):
    """The first word is not a command. Click would name `llamaswap --help`, which shows the server's flags."""

    exit_code = 2

    def __init__(self, word: str) -> None:
        near = get_close_matches(word, [*COMMANDS, *ALIASES], n=1)
        advice = f"did you mean {near[0]}?" if near else "llamaswap help lists them"
        advice = ELSEWHERE.get(word, advice)
        super().__init__(f"unknown command {word}; {advice}")


class Commands(click.Group):
    """A group that imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command with this name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        found: click.Command = getattr(import_module(f"llamaswap.cli.{module}"), attribute)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the words name."""
        if args == ["start"]:
            args = ["serve"]
        if args == ["stop"]:
            raise click.UsageError("stop needs a MODEL; llamaswap unload unloads all models", ctx)
        args = [*ALIASES.get(args[0], args[:1]), *args[1:]]
        if args[0] not in COMMANDS:
            raise UnknownCommand(args[0])
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words; whether --json is among them is known even if the command refuses the others."""
        ctx.meta[WANTS_JSON] = "--json" in args[: args.index("--") if "--" in args else None]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; with --json its error is a document too."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            if not ctx.meta[WANTS_JSON]:
                raise
            status = getattr(error, "status", None)
            click.echo(json.dumps({"error": {"message": error.format_message(), "status": status}}))
            ctx.exit(error.exit_code)


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Flags without a command start the server, as in the Go program: llamaswap -h shows them. Other names: "
    + ", ".join(f"{name} for {' '.join(words)}" for name, words in ALIASES.items())
    + ".",
)
def app() -> None:
    """One HTTP endpoint in front of every local inference server."""


def described(command: click.Command, context: click.Context) -> dict[str, object]:
    """A command as JSON: its help, arguments, options and subcommands."""
    options, arguments = [], []
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option):
            names = [*parameter.opts, *parameter.secondary_opts]
            entry: dict[str, object] = {
                "names": names,
                "help": parameter.help or "",
                "takes_value": not parameter.is_flag,
            }
            options.append({**entry, "required": parameter.required, "environment": parameter.envvar})
        else:
            entry = {"name": parameter.human_readable_name, "required": parameter.required}
            arguments.append({**entry, "many": parameter.nargs != 1})
    found = {"name": context.info_name, "help": inspect.cleandoc(command.help or "").replace("\b\n", "")}
    below = []
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            one = command.get_command(context, name)
            if one is not None:
                below.append(described(one, click.Context(one, info_name=name, parent=context)))
    return {**found, "arguments": arguments, "options": options, "commands": below}


@click.command(name="help")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def help_(context: click.Context, name: str | None, as_json: bool) -> None:
    """Show the help of a command."""
    parent = context.parent
    assert parent is not None
    name = name and ALIASES.get(name, (name,))[0]
    command: click.Command | None = app if name is None else app.get_command(parent, name)
    if command is None:
        raise UnknownCommand(str(name))
    asked = parent if name is None else click.Context(command, info_name=name, parent=parent)
    click.echo(json.dumps(described(command, asked), indent=2) if as_json else command.get_help(asked))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def completion(shell: str, as_json: bool) -> None:
    """Print the completion script of a shell.

    \b
    bash: llamaswap completion bash > ~/.local/share/bash-completion/completions/llamaswap
    zsh:  llamaswap completion zsh  > a folder of $fpath, as _llamaswap
    fish: llamaswap completion fish > ~/.config/fish/completions/llamaswap.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # click knows all three
    script = kind(app, {}, "llamaswap", COMPLETE).source()
    click.echo(json.dumps({"shell": shell, "script": script}) if as_json else script)


def main(words: Sequence[str]) -> None:
    """Run a command line whose first word is a command; raises SystemExit."""
    app.main(args=list(words), prog_name="llamaswap", complete_var=COMPLETE)
