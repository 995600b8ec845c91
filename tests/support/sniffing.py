"""All TCP traffic of the loopback interface, as the kernel sees it. Needs root, and Linux."""

from __future__ import annotations

import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Collection
from typing import Self

import pytest

_ALL = 0x0003  # ETH_P_ALL
_IPV4, _IPV6, _TCP = 0x0800, 0x86DD, 6
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 256 * 2**20
_STOP = b"the sniffer may stop"


class Sniffer:
    """Keeps what is sent from or to some ports of this machine; a context manager.

    Skips the test where it is not allowed to listen.
    """

    def __init__(self, ports: Collection[int]) -> None:
        self._ports = frozenset(ports)
        #: (source port, destination port) → what was sent, in order
        self._flows: defaultdict[tuple[int, int], bytearray] = defaultdict(bytearray)

    def __enter__(self) -> Self:
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL))
        except (AttributeError, PermissionError):
            pytest.skip("listening to the wire needs root, on Linux")
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        self._socket.bind(("lo", 0))
        self._thread = threading.Thread(target=self._listen, name="sniffer")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take what has come so far, and stop; twice is fine. Fails if something was missed."""
        if not self._thread.is_alive():
            return
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(_STOP, ("127.0.0.1", 9))
        self._thread.join()
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self._socket.close()
        _, missed = struct.unpack("II", statistics)
        assert missed == 0, f"{missed} packets were not seen"

    @property
    def size(self) -> int:
        """Bytes that were heard."""
        return sum(map(len, self._flows.values()))

    def count(self, needle: bytes) -> int:
        """How often these bytes were heard."""
        return sum(flow.count(needle) for flow in self._flows.values())

    def _listen(self) -> None:
        while True:
            packet, (_, protocol, kind, *_) = self._socket.recvfrom(2**17)
            if kind != socket.PACKET_OUTGOING:  # each packet on lo is seen twice
                continue
            if _STOP in packet:
                return
            segment = _tcp_segment(packet, protocol)
            if len(segment) < 20:
                continue
            source, destination = struct.unpack_from("!HH", segment)
            if source in self._ports or destination in self._ports:
                self._flows[source, destination] += segment[(segment[12] >> 4) * 4 :]


def _tcp_segment(packet: bytes, protocol: int) -> bytes:
    if protocol == _IPV4 and packet[9] == _TCP:
        return packet[(packet[0] & 15) * 4 : int.from_bytes(packet[2:4], "big") or None]
    if protocol == _IPV6 and packet[6] == _TCP:
        return packet[40:]
    return b""
