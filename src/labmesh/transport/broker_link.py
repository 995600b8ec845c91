"""What a client needs of its broker: answers, whichever of two brokers gives them."""

from __future__ import annotations

from typing import Protocol, TypeVar

from labmesh.errors import LabmeshError, LinkLost
from labmesh.protocol.addresses import Address, parse_connect
from labmesh.protocol.messages import GetStatus, Reply, Request, Status

__all__ = ["BrokerLink", "event_address"]

R = TypeVar("R", bound=Reply)


class BrokerLink(Protocol):
    """A :class:`~labmesh.transport.link.Link` to a broker, or what stands for one."""

    @property
    def endpoint(self) -> str:
        """Where the broker is asked."""

    @property
    def up(self) -> bool:
        """It answers."""

    @property
    def heard_at(self) -> float | None:
        """Monotonic time of the last message that came back."""

    @property
    def trouble(self) -> LabmeshError | None:
        """Why it does not answer; None: it does, or nothing is known yet."""

    async def request(
        self, request: Request, reply: type[R] | tuple[type[R], ...], *, timeout: float
    ) -> R:
        """Send a request and await its reply; see :meth:`labmesh.transport.link.Link.request`."""

    async def wait_up(self, timeout: float) -> None:
        """Wait until it answers.

        :raises AuthenticationError: as soon as it turns out not to accept us.
        :raises NotSent: no link within ``timeout`` seconds; the text says why.
        """

    def close(self) -> None:
        """End it; twice is fine."""


async def event_address(broker: BrokerLink, port_name: str, timeout: float) -> str:
    """Ask a broker for one of its event addresses.

    :param port_name: ``xsub_port`` or ``xpub_port``.
    :raises LinkLost: it does not answer, or does not tell.
    """
    status = await broker.request(GetStatus(id="-"), Status, timeout=timeout)
    port = status.facts.get(port_name)
    if type(port) is not int or not 0 < port < 2**16:
        raise LinkLost(
            f"{status.node_id} at {broker.endpoint} does not tell its event port: is this the "
            f"broker? Give broker_{port_name.removesuffix('_port')}"
        )
    return str(Address(parse_connect(broker.endpoint).host, port))
