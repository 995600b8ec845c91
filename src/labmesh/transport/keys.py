"""How a node is secured: the mode, and the keys that a network password gives.

One secret word makes two CURVE key pairs: one that every server of the network uses, and one that
every connecting socket uses. Who knows the word has both, so both sides prove it, and the word
itself never crosses the wire (RFC 26, "one key for all").

Two people who type the same word must get the same keys. So it is taken in Unicode's form NFC (an
``ü`` may arrive as one character or as two, RFC 8265), and without white space around it (``set
LMH_NETWORK_PASSWORD=word && ...`` of Windows leaves a space there, a file of variables a line end).
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import zmq
from zmq.utils import z85

from labmesh.errors import ConfigError, ProtocolError
from labmesh.protocol.ids import check_id

__all__ = ["KeyPair", "NetworkKeys", "Security"]

Mode = Literal["password", "open"]

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair in Z85; the secret stays out of ``repr``."""

    public: bytes
    secret: bytes = field(repr=False)


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
            _canonical(password).encode("utf-8", "surrogateescape"),
            salt=f"labmesh/1/{network}".encode(),
            n=2**15,
            r=8,
            p=1,
            maxmem=2**26,
            dklen=64,
        )
        return NetworkKeys(_pair(derived[:32]), _pair(derived[32:]))


def _canonical(password: str) -> str:
    return unicodedata.normalize("NFC", password.strip())


def _pair(secret: bytes) -> KeyPair:
    encoded = z85.encode(secret)
    return KeyPair(zmq.curve_public(encoded), encoded)


@dataclass(frozen=True)
class Security:
    """What a node's sockets use. Make one with :meth:`resolve`.

    ``mode`` is ``password`` (CURVE with derived keys) or ``open`` (no encryption: only peers on
    this machine are admitted, unless ``insecure``).
    """

    mode: Mode
    network: str = "labmesh"
    insecure: bool = False
    keys: NetworkKeys | None = field(default=None, repr=False)

    @classmethod
    def resolve(
        cls,
        *,
        mode: str | None = None,
        network: str | None = None,
        insecure: bool | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Security:
        """Settle the mode: environment, then argument (a file's table), then default.

        ``LMH_SECURITY`` (auto, password, open), ``LMH_NETWORK`` (the network's name),
        ``LMH_INSECURE``, ``LMH_NETWORK_PASSWORD``. ``auto`` means *password* when there is one,
        else *open*.

        :raises ConfigError: an unknown mode, mode *password* without a password, or a name of the
            network that is none.
        """
        password = environ.get("LMH_NETWORK_PASSWORD", "")
        wanted = environ.get("LMH_SECURITY") or mode or "auto"
        name = _network_name(environ.get("LMH_NETWORK") or network or "labmesh")
        if wanted == "auto":
            wanted = "password" if password else "open"
        if wanted == "open":
            return cls("open", name, _insecure(insecure, environ))
        if wanted == "password":
            if not password:
                raise ConfigError(
                    "security mode is 'password', but LMH_NETWORK_PASSWORD is not set; set it to "
                    "the network's password, on every node"
                )
            if not password.strip():
                raise ConfigError(
                    "LMH_NETWORK_PASSWORD holds nothing but white space; set it to the network's "
                    "password, or unset it to run without one"
                )
            return cls("password", name, keys=NetworkKeys.from_password(password, name))
        raise ConfigError(
            f"security mode {wanted!r} is not known; use 'auto', 'password' or 'open' "
            "(LMH_SECURITY, or [security] mode)"
        )


def _network_name(name: str) -> str:
    try:
        return check_id(name, "the network's name (LMH_NETWORK)")
    except ProtocolError as exc:
        raise ConfigError(str(exc)) from exc


def _insecure(argument: bool | None, environ: Mapping[str, str]) -> bool:
    text = environ.get("LMH_INSECURE")
    if text is None:
        return bool(argument)
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ConfigError(f"LMH_INSECURE is {text!r}; use 1 (admit every host) or 0")
