"""CURVE key pairs: of one node, and those that a network's password makes.

One secret word makes two key pairs: one that every server of the network uses, and one that every
connecting socket uses. Who knows the word has both, so both sides prove it, and the word itself
never crosses the wire (RFC 26, "one key for all").

Two people who type the same word must get the same keys. So it is taken in Unicode's form NFC (an
``ü`` may arrive as one character or as two, RFC 8265), and without white space around it (``set
LMH_NETWORK_PASSWORD=word && ...`` of Windows leaves a space there, a file of variables a line end).
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache

import zmq
from zmq.utils import z85

from labmesh.errors import ConfigError
from labmesh.protocol.access import fingerprint

__all__ = ["KeyPair", "NetworkKeys", "canonical", "check_curve", "is_pair", "new_key_pair"]


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair in Z85; the secret stays out of ``repr``."""

    public: bytes
    secret: bytes = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Of the public key: what people compare."""
        return fingerprint(self.public.decode("ascii"))


def new_key_pair() -> KeyPair:
    """Make a key pair of the system's randomness.

    :raises ConfigError: libzmq has no CURVE.
    """
    check_curve("keys")
    return KeyPair(*zmq.curve_keypair())


def is_pair(pair: KeyPair) -> bool:
    """Whether the two halves belong to each other."""
    try:
        return zmq.curve_public(pair.secret) == pair.public
    except (ValueError, zmq.ZMQError):  # no key at all, by its characters
        return False


@dataclass(frozen=True)
class NetworkKeys:
    """The keys of a network with a password: of its servers, and of those that connect."""

    server: KeyPair
    client: KeyPair

    @staticmethod
    @lru_cache(maxsize=8)
    def from_password(password: str, network: str) -> NetworkKeys:
        """Derive the keys (scrypt, 32 MiB, about 0.2 s)."""
        derived = hashlib.scrypt(
            # As the environment had it, also where it is not valid UTF-8.
            canonical(password).encode("utf-8", "surrogateescape"),
            salt=f"labmesh/1/{network}".encode(),
            n=2**15,
            r=8,
            p=1,
            maxmem=2**26,
            dklen=64,
        )
        return NetworkKeys(_pair(derived[:32]), _pair(derived[32:]))


def canonical(password: str) -> str:
    """The word that is meant, however it was typed."""
    return unicodedata.normalize("NFC", password.strip())


def _pair(secret: bytes) -> KeyPair:
    encoded = z85.encode(secret)
    return KeyPair(zmq.curve_public(encoded), encoded)


def check_curve(mode: str) -> None:
    """See that the installed libzmq can encrypt.

    :raises ConfigError: it has no CURVE.
    """
    if not zmq.has("curve"):
        raise ConfigError(
            f"security mode {mode!r} needs CURVE, and the installed libzmq ({zmq.zmq_version()}) "
            "has none; install pyzmq from its wheel: pip install --force-reinstall pyzmq"
        )
