"""One client for each service that was asked, kept until the end: a new connection for each question would cost more
than the question.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self, TypeVar

import httpx2

from crucible_emu.client.agent import AgentClient
from crucible_emu.client.host import HostClient
from crucible_emu.client.pantry import PantryClient
from crucible_emu.client.service import ServiceClient
from nexus.volumes import Address

C = TypeVar("C", bound=ServiceClient)


class Connections:
    """Clients of services by address; an asynchronous context manager.

    ``token`` and ``tls_ca`` (a PEM file): how services beyond loopback are spoken to; with ``tls_ca`` it is HTTPS.
    ``transport`` takes the place of the network in simulations.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        tls_ca: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._token, self._tls_ca, self._transport = token, tls_ca, transport
        self._clients: dict[tuple[type[ServiceClient], Address], ServiceClient] = {}

    def agent(self, address: Address) -> AgentClient:
        return self._client(AgentClient, address)

    def pantry(self, address: Address) -> PantryClient:
        return self._client(PantryClient, address)

    def host(self, address: Address) -> HostClient:
        return self._client(HostClient, address)

    def _client(self, kind: type[C], address: Address) -> C:
        found = self._clients.get((kind, address))
        if found is None:
            scheme = "http" if self._tls_ca is None else "https"
            url = f"{scheme}://{address}"
            found = kind(url, token=self._token, tls_ca=self._tls_ca, transport=self._transport)
            self._clients[kind, address] = found
        assert isinstance(found, kind)
        return found

    async def aclose(self) -> None:
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
