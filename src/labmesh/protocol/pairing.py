"""Pairing: one short code brings a machine into a network in mode *keys*.

Whoever runs the broker invites, and gets a code; the other machine joins with it. The code names
the place where the invitation is open, and a secret. From the code both sides derive the keys of
one encrypted connection, so each proves to the other that it has the code; then they exchange their
public keys. Here is the code, and what the inviting side answers.

The order is what keeps a failure from leaving half of it done::

    joins                                    invites
    ask_invitation           ──────────────▶
                             ◀────────────── invited      who you will be, whom you may trust
    makes its key, stores it
    confirm_join (public key) ─────────────▶ puts it on the allow-list
                             ◀────────────── admitted
    end_join                 ──────────────▶ the code is used up
                             ◀────────────── done
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from labmesh.errors import Conflict, Forbidden, ProtocolError
from labmesh.protocol.messages import (
    ID_PATTERN,
    KEY_PATTERN,
    Done,
    Failure,
    Grant,
    Message,
    Reply,
    Request,
    fingerprint,
)

__all__ = [
    "DEFAULT_PORT",
    "MAX_MESSAGE_BYTES",
    "MAX_WRONG_CODES",
    "PAIRING_REPLIES",
    "PAIRING_REQUESTS",
    "SECRET_BYTES",
    "Admitted",
    "AskInvitation",
    "Authorize",
    "ConfirmJoin",
    "EndJoin",
    "Ending",
    "GuestRole",
    "Invitation",
    "Invited",
    "PairingCode",
    "Terms",
    "parse_code",
]

#: Where an invitation is open unless another port is asked for.
DEFAULT_PORT: Final = 5753
#: Random bytes in a code. Nobody tries 2^80 of them, and each try costs the derivation of keys.
SECRET_BYTES: Final = 10
#: So many connections with a wrong code end an invitation, wherever they come from.
MAX_WRONG_CODES: Final = 5
#: The largest frame of an exchange.
MAX_MESSAGE_BYTES: Final = 16_384

# ── the code ────────────────────────────────────────────────────────────────────────────────────

#: Base 32 of Crockford: without I, L, O, which look like 1 and 0, and without U.
_DIGITS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LOOKALIKES: Final = str.maketrans("OIL", "011")
#: What people and programs put between groups, or around what they paste.
_BETWEEN: Final = re.compile(r"[\s\-\u00ad\u2010-\u2015\u2212_.'\"`]+")
_VERSION: Final = 1
_GROUP: Final = 4
_LENGTH: Final = 28
_HOST_BITS, _PORT_BITS, _SECRET_BITS, _SPARE_BITS = 32, 16, 8 * SECRET_BYTES, 2


@dataclass(frozen=True)
class PairingCode:
    """What a code says. The secret stays out of ``repr``.

    :param host: the IPv4 address where the invitation is open; empty: who joins has to know it.
    """

    host: str
    port: int
    secret: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """The code as people read it to each other: 28 characters in groups of four."""
        number = _VERSION
        for value, bits in (
            (int(IPv4Address(self.host or "0.0.0.0")), _HOST_BITS),
            (self.port, _PORT_BITS),
            (int.from_bytes(self.secret), _SECRET_BITS),
            (0, _SPARE_BITS),
        ):
            number = number << bits | value
        values = [number >> 5 * place & 31 for place in reversed(range(_LENGTH - 1))]
        values.append(_check(values))
        digits = "".join(_DIGITS[each] for each in values)
        return "-".join(digits[at : at + _GROUP] for at in range(0, _LENGTH, _GROUP))


def parse_code(text: str) -> PairingCode:
    """Read what somebody typed or pasted.

    Case, dashes and spaces do not matter; O is read as 0, I and L as 1. Every single wrong
    character, and any two that changed places, are noticed.

    :raises ProtocolError: one sentence; it never has the code itself in it.
    """
    digits = _BETWEEN.sub("", text).upper().translate(_LOOKALIKES)
    if not digits:
        raise ProtocolError("the code is empty; it is what 'labmesh keys invite' printed")
    for place, digit in enumerate(digits, 1):
        if digit not in _DIGITS:
            raise ProtocolError(_stranger(digit, place))
    if len(digits) != _LENGTH:
        amount = len(digits) - _LENGTH
        wrong = f"{amount} too many" if amount > 0 else f"{-amount} missing"
        raise ProtocolError(
            f"the code has {len(digits)} characters, {wrong}: it has {_LENGTH // _GROUP} groups of "
            f"{_GROUP}, as 'labmesh keys invite' printed them"
        )
    values = [_DIGITS.index(each) for each in digits]
    if _check(values[:-1]) != values[-1]:
        raise ProtocolError(
            "a character of the code is wrong, or two changed places (its check digit does not "
            "fit): compare it group by group with what 'labmesh keys invite' printed"
        )
    return _unpacked(values)


def _unpacked(values: list[int]) -> PairingCode:
    if values[0] != _VERSION:
        raise ProtocolError(
            f"the code is of another version of labmesh ({values[0]}, here {_VERSION}): install "
            "the same version on both machines"
        )
    number = 0
    for value in values[1:-1]:
        number = number << 5 | value
    number, spare = number >> _SPARE_BITS, number & 2**_SPARE_BITS - 1
    number, secret = number >> _SECRET_BITS, number & 2**_SECRET_BITS - 1
    host, port = number >> _PORT_BITS, number & 2**_PORT_BITS - 1
    if spare or not port:
        raise ProtocolError(
            "the code is damaged, in several places: compare it group by group with what 'labmesh "
            "keys invite' printed"
        )
    return PairingCode(str(IPv4Address(host)) if host else "", port, secret.to_bytes(SECRET_BYTES))


def _stranger(digit: str, place: int) -> str:
    group, inside = divmod(place - 1, _GROUP)
    where = f"character {inside + 1} of group {group + 1}"
    if digit == "U":
        return f"{where} of the code is a U, and no code has one: is it a V?"
    return (
        f"{where} of the code is {digit[:1]!a}, and a code has letters and digits only: the whole "
        "code is what 'labmesh keys invite' printed, between the dashes too"
    )


def _check(values: list[int]) -> int:
    """One digit that depends on each value and on its place.

    A polynomial over the field of 32 elements. The powers of its primitive element repeat after
    31 places, so in a shorter code no single error and no swap of two characters goes unnoticed.
    """
    result = 0
    for value in values:
        result = (result ^ value) << 1
        if result & 32:
            result ^= 0b100101
    return result


# ── the messages ────────────────────────────────────────────────────────────────────────────────

_KEY = Meta(pattern=KEY_PATTERN, max_length=40)
_ID = Meta(pattern=ID_PATTERN, max_length=128)
_PATTERN = Meta(min_length=1, max_length=128)


#: Whom one can be invited as.
GuestRole = Literal["viewer", "operator", "admin", "relay", "bank"]


class Terms(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an invitation offers: the network, whom to trust there, and who one will be."""

    #: the network's name
    network: Annotated[str, _ID]
    #: the name on the allow-list; of a relay or bank, its id
    name: Annotated[str, _ID]
    role: GuestRole
    #: the public keys of the broker and its spare, and of each its next one
    broker_keys: Annotated[tuple[Annotated[str, _KEY], ...], Meta(min_length=1, max_length=4)]
    #: the port of the broker's requests, on the host where the invitation is open
    broker_port: Annotated[int, Meta(ge=1, le=65_535)]
    #: patterns of the relay ids that it may use; none: all
    relays: Annotated[tuple[Annotated[str, _PATTERN], ...], Meta(max_length=64)] = ()


class AskInvitation(Request, frozen=True, kw_only=True, omit_defaults=True, tag="ask_invitation"):
    """What am I invited to? → Invited."""


class Invited(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="invited"):
    """The terms. Nothing has changed anywhere."""

    terms: Terms


class ConfirmJoin(Request, frozen=True, kw_only=True, omit_defaults=True, tag="confirm_join"):
    """My secret key is stored durably, and this is its public half → Admitted."""

    key: Annotated[str, _KEY]


class Admitted(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="admitted"):
    """The key is on the allow-list, durably; so said again to the same key."""


class EndJoin(Request, frozen=True, kw_only=True, omit_defaults=True, tag="end_join"):
    """I have everything → Done."""

    key: Annotated[str, _KEY]


PAIRING_REQUESTS: Final[tuple[type[Message], ...]] = (AskInvitation, ConfirmJoin, EndJoin)
PAIRING_REPLIES: Final[tuple[type[Message], ...]] = (Invited, Admitted, Done, Failure)


# ── the inviting side ───────────────────────────────────────────────────────────────────────────

Ending = Literal["joined", "wrong codes", "expired"]


@dataclass(frozen=True)
class Authorize:
    """To be done: put this on the allow-list, durably; then call :meth:`Invitation.authorized`."""

    request_id: str
    grant: Grant


class Invitation:
    """One invitation, from its opening to its end: for one key, once, and for a limited time.

    Who holds the code may ask. The first key that is confirmed is the one; after it the invitation
    stays open for that key alone, until it says that it has everything, so that who is interrupted
    can join again with the same code.

    :param ends_at: monotonic seconds after which it is over.
    """

    def __init__(self, terms: Terms, *, ends_at: float) -> None:
        self.terms = terms
        self.ends_at = ends_at
        #: what was put on the allow-list; None: nothing so far
        self.admitted: Grant | None = None
        self.wrong_codes = 0
        self._is_done = False

    def ending(self, now: float) -> Ending | None:
        """How it ended; None: it is open."""
        if self._is_done:
            return "joined"
        if self.wrong_codes >= MAX_WRONG_CODES:
            return "wrong codes"
        return "expired" if now >= self.ends_at else None

    def wrong_code(self) -> None:
        """Somebody connected with another code."""
        self.wrong_codes += 1

    def take(self, request: Message, now: float) -> Reply | Authorize:
        """Answer a request of somebody who has proved the code.

        :raises Forbidden: it is over.
        :raises Conflict: the code was used by another key.
        :raises ProtocolError: the exchange is not that far.
        """
        if (ending := self.ending(now)) is not None:
            raise Forbidden(f"this invitation is over ({ending}): ask for a new one")
        match request:
            case AskInvitation():
                return Invited(id=request.id, terms=self.terms)
            case ConfirmJoin(key=key):
                self._check_key(key)
                if self.admitted is not None:
                    return Admitted(id=request.id)
                return Authorize(request.id, self._grant(key))
            case EndJoin(key=key):
                self._check_key(key)
                if self.admitted is None:
                    raise ProtocolError("end_join comes after confirm_join")
                self._is_done = True
                return Done(id=request.id)
        raise ProtocolError(f"an invitation does not answer {type(request).__name__}")

    def authorized(self, step: Authorize) -> Admitted:
        """It is on the allow-list now; the answer."""
        self.admitted = step.grant
        return Admitted(id=step.request_id)

    def _check_key(self, key: str) -> None:
        if self.admitted is not None and self.admitted.key != key:
            raise Conflict(
                f"this code was used already, by the key {fingerprint(self.admitted.key)}; if that "
                "was not you, have whoever invited you say 'labmesh keys revoke "
                f"{self.terms.name}' and invite you again"
            )

    def _grant(self, key: str) -> Grant:
        terms = self.terms
        return Grant(name=terms.name, role=terms.role, key=key, relays=terms.relays)
