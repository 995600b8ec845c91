"""Bad messages that are packs, or look like packs: no socket may stumble over them."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.bad_case import BAD, Case, nested, pack

__all__ = ["bad_packs"]

#: Over the size limit of some sockets, which hang up, and of packs.
_LARGE = (400, 413, None)
_PING = {"type": "ping", "id": "7"}


def _of(members: list[bytes]) -> bytes:
    """An array of these, whatever they are."""
    return b"\xdc" + len(members).to_bytes(2, "big") + b"".join(members)


def bad_packs() -> Iterator[Case]:
    """What any socket must survive."""
    ping = pack(_PING)
    yield Case("I16", "a good pack", [pack([_PING] * 2)], (0,))
    yield Case("I16", "a good pack behind a delimiter", [b"", pack([_PING] * 2)], (0,))
    yield Case("I16", "a pack of nothing", [b"\xdc\0\0"], BAD)
    yield Case("I16", "half a count", [b"\xdc\0"], BAD)
    yield Case("I16", "a pack that claims 65,535 messages", [b"\xdc\xff\xff"], (413,))
    yield Case("I16", "a pack that claims 64 messages", [b"\xdc\0\x40"], BAD)
    yield Case("I16", "a pack of 65 messages", [_of([ping] * 65)], (413,))
    yield Case("I16", "a pack of 257 messages", [_of([ping] * 257)], (413,))
    yield Case("I16", "a long array of 2**32 messages", [b"\xdd\xff\xff\xff\xff"], BAD)
    yield Case("I16", "a long array of one message", [b"\xdd\0\0\0\1" + ping], BAD)
    for size in (60_000, 2**20, 15 * 2**20, 2**24):
        nothing = b"\xdc\0\x40" + b"\xc0" * size
        yield Case("I16", f"a pack and {size} bytes of nil", [nothing], _LARGE)
    yield Case("I16", "a pack of empty texts", [_of([b"\xa0"] * 64)], BAD)
    yield Case("I16", "a pack of empty bytes", [_of([b"\xc4\0"] * 64)], BAD)
    yield Case("I16", "a pack of empty packs", [_of([b"\x90"] * 64)], BAD)
    yield Case("I16", "a pack in a pack", [_of([ping, _of([ping])])], BAD)
    yield Case("I16", "packs 60,000 deep", [b"\x91" * 60_000], BAD)
    yield Case(
        "I16", "a message with lists 60,000 deep", [b"\x91\x81\xa1x" + b"\x91" * 60_000], BAD
    )
    yield Case("I16", "a message with maps 20,000 deep", [b"\x91" + b"\x81\xa1x" * 20_000], BAD)
    deep = pack({**_PING, "type": "call", "method": "set_voltage", "args": [nested(40)]})
    yield Case("I16", "64 messages with lists 40 deep", [_of([deep] * 64)], BAD)
    yield Case("I16", "64 empty messages", [_of([b"\x80"] * 64)], BAD)
    yield Case("I16", "64 messages of no known type", [_of([pack({"type": "x"})] * 64)], BAD)
    yield Case("I16", "a message that claims 2**32 keys", [_of([b"\xdf\xff\xff\xff\xff"])], BAD)
    yield Case("I16", "a text that claims 2**32 bytes", [_of([b"\x81\xdb\xff\xff\xff\xff"])], BAD)
    yield Case("I16", "bytes behind the last message", [_of([ping]) + b"\xc0"], BAD)
    yield Case("I16", "JSON in a pack", [b'\x91{"type":"ping","id":"7"}'], BAD)
    yield Case("I16", "JSON as bytes in a pack", [pack([b'{"type":"ping","id":"7"}'])], BAD)
    yield Case("I16", "a pack and a buffer", [pack([_PING]), b"x"], BAD)
