"""The command ``labmesh``: its commands, and how each of them ends."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from cyclopts import App, CycloptsError, Group, UnusedCliTokensError

from labmesh.cli.options import Options
from labmesh.cli.outcomes import (
    DONE,
    EXIT_CODES,
    INTERRUPTED,
    OUTCOMES,
    outcome_of,
    report,
    usage_error,
)
from labmesh.cli.output import Output, PipedConsole, never_fail_to_encode
from labmesh.cli.running import log_to_stderr
from labmesh.version import __version__

__all__ = ["app", "main"]

_HELP = f"""A mesh over ZeroMQ for laboratory instruments.

Begin with 'labmesh demo', then 'labmesh up'. Each command has its own --help, with an example.

Exit codes: {"; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())}.
"""


# Commands are named here by where they are, and loaded when they are run: each takes a part of
# labmesh, none of them all of it.
def _build() -> App:
    root = App(
        name="labmesh",
        help=_HELP,
        version=__version__,
        help_format="plaintext",
    )
    begin = Group("Begin", sort_key=1)
    root.command("labmesh.cli.demo:demo", group=begin)
    root.command("labmesh.cli.up:up", group=begin)
    root.command("labmesh.cli.nodes:init", group=begin)
    _add_use(root, Group("Use a mesh", sort_key=2))
    run = Group("Run nodes", sort_key=3)
    root.command("labmesh.cli.nodes:broker", group=run)
    root.command("labmesh.cli.nodes:bank", group=run)
    root.command("labmesh.cli.nodes:relay", group=run)
    _add_care(root, Group("Look after it", sort_key=4))
    root.register_install_completion_command(
        help="Install completion of commands and options for this shell."
    )
    return root


def _add_use(root: App, group: Group) -> None:
    root.command("labmesh.cli.mesh_commands:ls", group=group)
    root.command("labmesh.cli.show:show", group=group)
    root.command("labmesh.cli.instrument_commands:call", group=group)
    root.command("labmesh.cli.instrument_commands:get", group=group)
    root.command("labmesh.cli.instrument_commands:set_value", name="set", group=group)
    root.command("labmesh.cli.mesh_commands:watch", group=group)
    root.command("labmesh.cli.logs:log", group=group)
    root.command("labmesh.cli.stubs:stubs", group=group)
    data = {
        "ls": "datasets:ls",
        "search": "datasets:search",
        "show": "datasets:show",
        "put": "data_transfers:put",
        "get": "data_transfers:get",
        "rm": "data_care:rm",
        "verify": "data_care:verify",
        "tag": "data_care:tag",
        "note": "data_care:note",
        "history": "datasets:history",
        "trash": "datasets:trash",
        "restore": "data_care:restore",
        "export": "data_folders:export",
        "import": "data_folders:import_",
    }
    about = "Datasets: find, show, store, fetch, tag, delete, export, import."
    root.command(_family("data", about, group, data))


def _add_care(root: App, group: Group) -> None:
    of_keys = {
        "init": "keys_changes:init",
        "invite": "keys_pairing:invite",
        "join": "keys_pairing:join",
        "new": "keys_changes:new",
        "list": "keys:list_",
        "show": "keys:show",
        "revoke": "keys_changes:revoke",
        "rotate": "keys_changes:rotate",
        "check": "keys:check",
    }
    about = "Keys of nodes and people: make, admit, list, revoke, replace, check."
    root.command(_family("keys", about, group, of_keys))
    about = "The journals of who did what: show them, check that they are whole."
    journals = {"show": "audit:show", "verify": "audit:verify"}
    root.command(_family("audit", about, group, journals))
    about = "The password of a network: a new one."
    root.command(_family("password", about, group, {"new": "password:new"}))
    root.command("labmesh.cli.doctor:doctor", group=group)


def _family(name: str, about: str, group: Group, commands: dict[str, str]) -> App:
    """Commands that have a first word in common: by name, where in labmesh.cli each is."""
    family = App(name=name, help=about, group=group, help_format="plaintext")
    for each, place in commands.items():
        family.command(f"labmesh.cli.{place}", name=each)
    return family


app = _build()


def main(tokens: Sequence[str] | None = None) -> int:
    """Run one command; the exit code.

    Expected errors are a line on stderr with what to try; any other one is a fault of labmesh and
    comes out as it is.
    """
    never_fail_to_encode()
    words = list(sys.argv[1:] if tokens is None else tokens)
    try:
        return _run(words)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has enough ('labmesh watch | head -1'). Python would complain
        # once more when it closes stdout.
        _discard(sys.stdout)
        return DONE


def _run(words: list[str]) -> int:
    try:
        command, bound, _ = app.parse_args(
            words, console=PipedConsole(), exit_on_error=False, print_error=False
        )
    except CycloptsError as exc:
        return usage_error(_usage_text(exc), _command(words), Output(json="--json" in words))
    bound.apply_defaults()
    options = bound.arguments.get("options")
    if not isinstance(options, Options):  # --help, --version, --install-completion
        from cyclopts.completion.detect import ShellDetectionError

        _load_all()
        try:
            command(*bound.args, **bound.kwargs)
        except ShellDetectionError as exc:
            return usage_error(f"{exc}; name it: --shell bash", _command(words), Output())
        return DONE
    # A copy: the defaults are one object for all runs, and options remember what they led to.
    options = bound.arguments["options"] = dataclasses.replace(options)
    try:
        with log_to_stderr(options.verbose, options.quiet):
            options.prepare()
            exit_code: int = command(*bound.args, **bound.kwargs)
    except tuple(OUTCOMES) as exc:
        if type(exc) is BrokenPipeError:  # a driver's own comes as a subclass
            raise
        return _reported(exc, options)
    return exit_code


def _load_all() -> None:
    """The help of several commands tells each by its first line: they have to be there."""
    for family in app.resolved_commands().values():
        family.resolved_commands()


def _reported(error: BaseException, options: Options) -> int:
    """The exit code of an expected error, also when nobody reads what is said of it."""
    try:
        return report(error, options.out, verbose=options.verbose)
    except BrokenPipeError:
        _discard(sys.stderr)
        return outcome_of(error).exit_code


def _usage_text(error: CycloptsError) -> str:
    if isinstance(error, UnusedCliTokensError):
        return f"nothing takes {' '.join(map(repr, error.unused_tokens or ()))} here"
    return str(error)


def _discard(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _command(words: Sequence[str]) -> str:
    """The command that these words begin with, as far as it is one: ``labmesh data ls``."""
    names, here = ["labmesh"], app
    for word in words:
        if word.startswith("-") or word not in here:
            break
        names.append(word)
        here = here[word]
    return " ".join(names)
