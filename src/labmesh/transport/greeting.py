"""What a server says of itself before any handshake: the mechanism in its ZMTP greeting.

libzmq does not tell why a handshake broke. The greeting does: each side sends it at once, readable,
to everybody (RFC 37, "Connection greeting").
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from typing import Literal, NamedTuple

from labmesh.errors import ProtocolError
from labmesh.protocol.addresses import parse_connect

__all__ = ["Found", "Greeting", "greeting_at", "mechanism_at"]

Found = Literal[
    "no such host",
    "no name server",
    "nobody",  # the port is closed
    "no way",  # nothing comes back
    "closed",  # it takes the connection and ends it
    "silence",
    "other",  # it says something else
    "ZeroMQ",
]

#: Signature and major version: enough for a server to send its own greeting.
_OURS = b"\xff" + bytes(8) + b"\x7f\x03"
#: Ends a line that others wait for, and means nothing by itself.
_ENTER = b"\r\n\r\n"
_SIGNATURE = (0xFF, 0x7F)
_NAME = slice(12, 32)
_CONNECT_S, _SPEAK_S, _ANSWER_S = 0.5, 0.3, 0.2
_SHOWN = 40


class Greeting(NamedTuple):
    """What was found at an address.

    :param mechanism: of ZeroMQ: ``NULL``, ``CURVE``, …; empty: it did not say.
    :param said: what it says otherwise, or what the system says about it; one line, printable.
    """

    found: Found
    mechanism: str = ""
    said: str = ""


async def mechanism_at(endpoint: str) -> str:
    """``NULL``, ``CURVE``, ... : what the server at ``endpoint`` speaks; empty: it does not say.

    One connection that ends before the handshake begins; it takes at most a second.
    """
    return (await greeting_at(endpoint)).mechanism


async def greeting_at(endpoint: str) -> Greeting:
    """Who is at ``endpoint``; as :func:`mechanism_at`."""
    try:
        address = parse_connect(endpoint)
    except ProtocolError:
        return Greeting("nobody")
    try:
        async with asyncio.timeout(_CONNECT_S):
            hosts = await _numbers_of(address.host)
    except TimeoutError:
        return Greeting("no name server")
    except OSError as exc:
        return Greeting("no such host", said=exc.strerror or str(exc))
    try:
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await _connected(hosts, address.port)
    except ConnectionRefusedError:
        return Greeting("nobody")
    except TimeoutError:
        return Greeting("no way")
    except OSError as exc:
        return Greeting("no way", said=_why(exc))
    try:
        return _met(await _said(reader, writer))
    finally:
        # Not waited for: nothing is left to be sent, and the other side may have closed it.
        writer.transport.abort()


async def _numbers_of(host: str) -> list[str]:
    """The addresses that a name has, in numbers.

    In a thread of its own: those of the loop may all be busy, and a look-up that hangs must not
    keep the program from ending.
    """
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass  # a name
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str] | OSError] = loop.create_future()

    def tell(result: list[str] | OSError) -> None:
        if not found.done():
            found.set_result(result)

    def look_up() -> None:
        result: list[str] | OSError
        try:
            rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            result = [str(each[4][0]) for each in rows]
        except OSError as exc:
            result = exc
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody wants to know
            loop.call_soon_threadsafe(tell, result)

    threading.Thread(target=look_up, name=f"look-up of {host}", daemon=True).start()
    result = await found
    if isinstance(result, OSError):
        raise result
    return list(dict.fromkeys(result))


async def _connected(
    hosts: list[str], port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the first of these that takes one."""
    for host in hosts[:-1]:
        with contextlib.suppress(OSError):
            return await asyncio.open_connection(host, port)
    return await asyncio.open_connection(hosts[-1], port)


async def _said(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes | None:
    """The first words of a server; empty: it hung up; None: it says nothing."""
    words = b""
    # Some wait for the end of a line before they say that they did not understand.
    for ours, patience_s in ((_OURS, _SPEAK_S), (_ENTER, _ANSWER_S)):
        writer.write(ours)
        try:
            async with asyncio.timeout(patience_s):
                while len(words) < _NAME.stop:
                    more = await reader.read(_NAME.stop - len(words))
                    if not more:
                        return words
                    words += more
        except TimeoutError:
            pass
        except OSError:
            return words
        if words:
            return words
    return None


def _met(words: bytes | None) -> Greeting:
    if words is None:
        return Greeting("silence")
    if not words:
        return Greeting("closed")
    if len(words) >= 10 and (words[0], words[9]) == _SIGNATURE:
        name = words[_NAME].rstrip(b"\0").decode("ascii", "replace")
        if len(words) < _NAME.stop:
            return Greeting("closed")
        return Greeting("ZeroMQ", mechanism=name)
    line = words.decode("ascii", "replace").strip().partition("\n")[0].strip()[:_SHOWN]
    return Greeting("other", said="".join(each if each.isprintable() else "?" for each in line))


def _why(exc: OSError) -> str:
    """The system's words; several addresses of one name may each have failed."""
    return (exc.strerror or str(exc)).lower()
