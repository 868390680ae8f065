"""One upstream's connections: how many, for how long, by which proxy, and which certificates are believed.

Owns them from the first call to `aclose`. Sends a call and gives back its answer's beginning; decides nothing about failures.
Proxies are those of the environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY), and so are other roots of trust (SSL_CERT_FILE,
SSL_CERT_DIR).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import certifi
from yarl import URL

from worker.engines.upstream.api import Call
from worker.engines.upstream.config import UpstreamConfig

_KEEPALIVE_S = 4.0
"""Below the 5 s after which common servers (uvicorn, and so vLLM) close an idle connection, perhaps under a request."""

_BUFFER_BYTES = 64 * 1024
"""Read ahead of a slow reader; then the upstream is left to wait."""


class Connections:
    """Made anywhere, used on one loop."""

    def __init__(self, config: UpstreamConfig, headers: Mapping[str, str]) -> None:
        """Blocks: loads certificates."""
        self._config = config
        # Not compressed: bodies are bounded as they come.
        self._headers = {"user-agent": "penstock", "accept-encoding": "identity", **dict(config.headers), **headers}
        self._proxy = proxy_of(config.base_url)
        self._tls = trusted() if config.base_url.startswith("https:") else None
        self._session: aiohttp.ClientSession | None = None

    async def send(self, call: Call) -> aiohttp.ClientResponse:
        """The answer's beginning; close it. Redirects are not followed. Raises aiohttp.ClientError."""
        session = self._session = self._session or self._opened()
        return await session.request(
            "POST" if call.body else "GET",
            URL(f"{self._config.base_url}{call.path}", encoded=True),
            data=call.body or None,
            headers={"content-type": "application/json"} if call.body else None,
            allow_redirects=False,
        )

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        config = self._config
        connector = aiohttp.TCPConnector(
            limit=config.max_concurrency, keepalive_timeout=_KEEPALIVE_S, ssl=True if self._tls is None else self._tls
        )
        return aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            proxy=self._proxy,
            timeout=aiohttp.ClientTimeout(total=None, connect=config.patience.connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_BUFFER_BYTES,
        )


def proxy_of(base_url: str) -> str | None:
    """The proxy that the environment names for this upstream."""
    parts = urlsplit(base_url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return None if not proxy or proxy_bypass(parts.hostname or "") else proxy


def trusted() -> ssl.SSLContext:
    """Whose certificates are believed: Mozilla's roots, or what the environment names instead."""
    named = any(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
    return ssl.create_default_context(cafile=None if named else certifi.where())
