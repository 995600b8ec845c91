"""``labmesh stubs``: the driver of a relay as a class for editors and type checkers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from labmesh.cli.instrument_commands import described
from labmesh.cli.options import ClientOptions
from labmesh.cli.outcomes import DONE
from labmesh.cli.running import connected, run
from labmesh.cli.stub_text import MARK, stub_class, stub_text
from labmesh.errors import ConfigError
from labmesh.protocol.messages import Description

__all__ = ["stubs"]

_OPTIONS = ClientOptions()
_FIND_S = 1.0


def stubs(
    relay: Annotated[str, Parameter(help="The relay's id.")],
    /,
    *,
    output: Annotated[
        Path | None,
        Parameter(
            name=["--output", "-o"],
            help="Write it there: a .py that scripts import, or a .pyi. Without it: print it.",
        ),
    ] = None,
    is_async: Annotated[
        bool,
        Parameter(
            name="--async",
            negative="",
            show_default=False,
            help="A subclass of RelayClient, for the async client.",
        ),
    ] = False,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Write the methods and values of an instrument as a class that editors understand.

    With it an editor completes names, shows docstrings, and a type checker finds wrong arguments.
    What a driver annotates with types of its own becomes Any. Make it again when the driver
    changes; calls do not depend on it.

    For example:

        labmesh stubs Inst-0
        labmesh stubs Inst-0 -o inst_0.py
        labmesh stubs Inst-0 --async -o inst_0.py
    """
    description = run(_described(relay, options))
    module = _module(relay) if output is None else output.stem
    for_pyi = output is not None and output.suffix == ".pyi"
    text = stub_text(description, module=module, is_async=is_async, for_pyi=for_pyi)
    if output is not None:
        _write(output, text)
        options.out.say(f"{output}: class {stub_class(description.driver)}")
    if options.json:
        name = stub_class(description.driver)
        place = None if output is None else str(output)
        options.out.record({"relay_id": relay, "class": name, "path": place, "text": text})
    elif output is None:
        options.out.text(text)
    return DONE


async def _described(relay_id: str, options: ClientOptions) -> Description:
    async with connected(options) as client:
        await client.get_relay_agent(relay_id, wait=_FIND_S)
        return await described(client, relay_id, options)


def _module(relay_id: str) -> str:
    return re.sub(r"\W", "_", relay_id.lower(), flags=re.ASCII)


def _write(path: Path, text: str) -> None:
    """:raises ConfigError: there is another file, which is left alone."""
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise ConfigError(f"{path} was not made by 'labmesh stubs' and is kept; name another file")
    path.write_text(text, encoding="utf-8")
