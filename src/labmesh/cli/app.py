"""The command ``labmesh``: its commands, and how each of them ends."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from cyclopts import App, CycloptsError, Group, UnusedCliTokensError
from cyclopts.completion.detect import ShellDetectionError

import labmesh
from labmesh.cli import (
    audit,
    data_care,
    data_folders,
    data_transfers,
    datasets,
    instrument_commands,
    keys,
    keys_changes,
    keys_pairing,
    logs,
    mesh_commands,
    nodes,
    password,
)
from labmesh.cli.demo import demo
from labmesh.cli.doctor import doctor
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
from labmesh.cli.show import show
from labmesh.cli.stubs import stubs
from labmesh.cli.up import up

__all__ = ["app", "main"]

_HELP = f"""A mesh over ZeroMQ for laboratory instruments.

Begin with 'labmesh demo', then 'labmesh up'. Each command has its own --help, with an example.

Exit codes: {"; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())}.
"""


def _build() -> App:
    begin, use, run, look = (
        Group("Begin", sort_key=1),
        Group("Use a mesh", sort_key=2),
        Group("Run nodes", sort_key=3),
        Group("Look after it", sort_key=4),
    )
    root = App(
        name="labmesh",
        help=_HELP,
        version=labmesh.__version__,
        help_format="plaintext",
    )
    root.command(demo, group=begin)
    root.command(up, group=begin)
    root.command(nodes.init, group=begin)
    root.command(mesh_commands.ls, group=use)
    root.command(show, group=use)
    root.command(instrument_commands.call, group=use)
    root.command(instrument_commands.get, group=use)
    root.command(instrument_commands.set_value, name="set", group=use)
    root.command(mesh_commands.watch, group=use)
    root.command(logs.log, group=use)
    root.command(stubs, group=use)
    data = App(
        name="data",
        help="Datasets: find, show, store, fetch, tag, delete, export, import.",
        group=use,
        help_format="plaintext",
    )
    data.command(datasets.ls, name="ls")
    data.command(datasets.search, name="search")
    data.command(datasets.show, name="show")
    data.command(data_transfers.put, name="put")
    data.command(data_transfers.get, name="get")
    data.command(data_care.rm, name="rm")
    data.command(data_care.verify, name="verify")
    data.command(data_care.tag, name="tag")
    data.command(data_care.note, name="note")
    data.command(datasets.history, name="history")
    data.command(datasets.trash, name="trash")
    data.command(data_care.restore, name="restore")
    data.command(data_folders.export, name="export")
    data.command(data_folders.import_, name="import")
    root.command(data)
    root.command(nodes.broker, group=run)
    root.command(nodes.bank, group=run)
    root.command(nodes.relay, group=run)
    root.command(_keys(look))
    journals = App(
        name="audit",
        help="The journals of who did what: show them, check that they are whole.",
        group=look,
        help_format="plaintext",
    )
    journals.command(audit.show, name="show")
    journals.command(audit.verify, name="verify")
    root.command(journals)
    passwords = App(
        name="password",
        help="The password of a network: a new one.",
        group=look,
        help_format="plaintext",
    )
    passwords.command(password.new, name="new")
    root.command(passwords)
    root.command(doctor, group=look)
    root.register_install_completion_command(
        help="Install completion of commands and options for this shell."
    )
    return root


def _keys(group: Group) -> App:
    commands = App(
        name="keys",
        help="Keys of nodes and people: make, admit, list, revoke, replace, check.",
        group=group,
        help_format="plaintext",
    )
    commands.command(keys_changes.init, name="init")
    commands.command(keys_pairing.invite, name="invite")
    commands.command(keys_pairing.join, name="join")
    commands.command(keys_changes.new, name="new")
    commands.command(keys.list_, name="list")
    commands.command(keys.show, name="show")
    commands.command(keys_changes.revoke, name="revoke")
    commands.command(keys_changes.rotate, name="rotate")
    commands.command(keys.check, name="check")
    return commands


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
        try:
            command(*bound.args, **bound.kwargs)
        except ShellDetectionError as exc:
            return usage_error(f"{exc}; name it: --shell bash", _command(words), Output())
        return DONE
    # A copy: the defaults are one object for all runs, and options remember what they led to.
    options = bound.arguments["options"] = dataclasses.replace(options)
    try:
        log_to_stderr(options.verbose, options.quiet)
        options.prepare()
        exit_code: int = command(*bound.args, **bound.kwargs)
    except tuple(OUTCOMES) as exc:
        if type(exc) is BrokenPipeError:  # a driver's own comes as a subclass
            raise
        return _reported(exc, options)
    return exit_code


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
