"""Requests of the connectors of HTTP, by httpx, and their errors."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx

from velo.connect.errors import (
    AuthenticationFailed,
    ConnectError,
    NoSuchTopic,
    PermissionDenied,
    Unreachable,
)

__all__ = ["Requests"]

_STATUS: dict[int, type[ConnectError]] = {
    401: AuthenticationFailed,
    403: PermissionDenied,
    404: NoSuchTopic,
    407: AuthenticationFailed,
    408: Unreachable,
    410: NoSuchTopic,
    425: Unreachable,
    429: Unreachable,
    # The server cannot do it, and does not learn it.
    501: ConnectError,
    505: ConnectError,
}
# So much of the body of an error is shown.
_SHOWN_BYTES = 500


class Requests:
    """Requests of one URL.

    Args:
        url: The URL, without a login.
        shown: What messages say of it, without secrets.
        headers: The headers of each request.
        tls: Certificates of one's own.
        answer_timeout: The seconds that connecting and the head of a response may take.
        read_timeout: The seconds that the body of a response may be silent; None: for ever.

    """

    def __init__(
        self,
        url: str,
        shown: str,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None,
        answer_timeout: float,
        read_timeout: float | None,
    ) -> None:
        self.shown = shown
        self._url = url
        self._headers = headers
        self._tls = tls
        self._answer_timeout = answer_timeout
        self._read_timeout = read_timeout
        # That of reading would hold for the head as for the body, which have limits of their own.
        self._timeout = httpx.Timeout(answer_timeout, read=None)
        self._client: httpx.AsyncClient | None = None

    async def open(
        self, method: str, headers: Mapping[str, Any], content: bytes | None = None
    ) -> httpx.Response:
        """Make a request, and return once the head of its response is there.

        Raises:
            ConnectError: When the status is not one of success; `Unreachable` where a later attempt
                may do, with the seconds that the server asks to wait as `retry_after`.

        """
        if self._client is None:
            verify: Any = True if self._tls is None else self._tls
            self._client = httpx.AsyncClient(verify=verify, timeout=self._timeout)
        try:
            with self._named():
                request = self._client.build_request(
                    method, self._url, headers={**self._headers, **headers}, content=content
                )
                async with asyncio.timeout(self._answer_timeout):
                    response = await self._client.send(request, stream=True)
        except TimeoutError:
            raise Unreachable(
                f"no answer of {self.shown} within {self._answer_timeout:g} s"
            ) from None
        if not response.is_success:
            try:
                raise await self._refused(response)
            finally:
                await response.aclose()
        return response

    async def post(self, headers: Mapping[str, str], content: bytes) -> None:
        """Make a request whose response tells no more than its status.

        Raises:
            ConnectError: As `open`.

        """
        response = await self.open("POST", headers, content)
        try:
            # It is read to its end, so that the connection can be used again.
            with self._named():
                async with asyncio.timeout(self._answer_timeout):
                    async for _ in response.aiter_bytes():
                        pass
        except TimeoutError:
            pass  # the status has come, and the status counts
        finally:
            await response.aclose()

    async def chunks(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        """Give the body of a response as it comes.

        Raises:
            Unreachable: When it breaks off, or is silent for `read_timeout`.

        """
        chunks = response.aiter_bytes()
        while True:
            try:
                with self._named():
                    async with asyncio.timeout(self._read_timeout):
                        chunk = await anext(chunks, None)
            except TimeoutError:
                raise Unreachable(
                    f"{self.shown} was silent for too long: {self._read_timeout:g} s "
                    "(`read_timeout`)"
                ) from None
            if chunk is None:
                return
            yield chunk

    async def _refused(self, response: httpx.Response) -> ConnectError:
        body = b""
        with contextlib.suppress(httpx.HTTPError, TimeoutError):
            async with asyncio.timeout(self._answer_timeout):
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) >= _SHOWN_BYTES:
                        break
        status = response.status_code
        kind = _STATUS.get(status, Unreachable if status >= 500 else ConnectError)
        # One line, and nothing that a terminal would obey.
        words = body[:_SHOWN_BYTES].decode(errors="replace").split()
        text = "".join(letter for letter in " ".join(words) if letter.isprintable())
        # Without its parameters, which may be secret.
        location = response.headers.get("location", "").partition("?")[0]
        where = f" to {location}" if location else ""
        error = kind(
            f"{self.shown} answers with status {status} {response.reason_phrase}{where}"
            + (f": {text}" if text else "")
        )
        with contextlib.suppress(ValueError):
            error.retry_after = float(  # type: ignore[attr-defined]
                response.headers.get("retry-after", "")
            )
        return error

    @contextlib.contextmanager
    def _named(self) -> Any:
        try:
            yield
        except httpx.TimeoutException as error:
            raise Unreachable(f"{self.shown}: {_said(error)}: it took too long") from None
        except httpx.InvalidURL as error:
            raise ValueError(f"{self.shown} is no URL: {error}") from None
        except (httpx.TransportError, ssl.SSLError) as error:
            raise Unreachable(f"the connection to {self.shown} failed: {_said(error)}") from error
        except httpx.HTTPError as error:
            raise ConnectError(f"the request to {self.shown} failed: {_said(error)}") from error

    async def close(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
