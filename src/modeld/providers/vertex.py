"""Google's models on Vertex AI (Gemini Enterprise Agent Platform), on the official SDK ``google-genai``.

Source: https://docs.cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import structs

from modeld.errors import AuthenticationError, InvalidRequestError
from modeld.providers.facts import observe
from modeld.providers.google_facts import google_facts
from modeld.providers.google_sdk import GoogleWire, Link, open_link
from modeld.repository.connections import require
from modeld.repository.provider import WireCatalog
from modeld.repository.values import BackendSpec, ObservedModel

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

    from modeld.repository.catalog import CatalogOptions

SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
BETA: Final = "v1beta1"
PAGE: Final = 100
_ADDRESS: Final = re.compile(
    r"(?P<root>https?://[^/]+)/(?P<version>v1|v1beta1)/projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)/?"
)


class VertexWire(GoogleWire):
    """One project and location of Vertex AI."""

    type = "vertex-google"

    def __init__(self, spec: BackendSpec, options: CatalogOptions) -> None:
        super().__init__(spec, options)
        address = _ADDRESS.fullmatch(spec.base_url.strip())
        if address is None:
            raise InvalidRequestError(
                "vertex-google needs base_url https://REGION-aiplatform.googleapis.com/v1/projects/P/locations/R, "
                f"not {spec.base_url!r}",
                parameter="base_url",
            )
        self._address = address.groupdict()
        self._account = _account(spec.api_key)
        self._lock = threading.Lock()
        self._credentials: Credentials | None = None

    @property
    def backend_ids(self) -> tuple[str, ...]:
        """The address of project and location."""
        return (self.spec.base_url.strip().rstrip("/"),)

    @property
    def _beta(self) -> dict[str, Any]:
        # v1 lists no models of publishers, and has not all requests of embeddings.
        return {"api_version": BETA}

    def _open(self) -> Link:
        require("google.genai", "google")
        address = self._address
        return open_link(
            self.options.http_client,
            address["root"],
            address["version"],
            enterprise=True,
            credentials=self._credentials_once(),
            project=address["project"],
            location=address["location"],
        )

    def _credentials_once(self) -> Credentials:
        """One object for all event loops, so that its token is fetched once.

        The SDK refreshes it in a thread, over ``requests`` and not over ``http_client``.
        """
        with self._lock:
            if self._credentials is None:
                self._credentials = self._new_credentials()
            return self._credentials

    def _new_credentials(self) -> Credentials:
        if self._account is not None:
            from google.oauth2.service_account import Credentials as ServiceAccount

            try:
                made: Credentials = ServiceAccount.from_service_account_info(self._account, scopes=SCOPES)  # type: ignore[no-untyped-call]
            except ValueError as error:
                text = f"vertex-google: the service account cannot be used: {str(error)[:200]}"
                raise AuthenticationError(text, backend=self.type) from error
            return made
        import google.auth

        # A person's credentials have no project of their own, which listing the models is billed to.
        found, _ = google.auth.default(scopes=SCOPES, quota_project_id=self._address["project"])
        default: Credentials = found
        return default

    async def list_models(self) -> list[ObservedModel]:
        """Google's own models. The listing has names and versions only; capabilities are from the table."""
        return [_observed(model.name, model.version) for model in await self._listed(PAGE) if model.name]

    def model(self, name: str) -> ObservedModel:
        """See :meth:`modeld.repository.wire.Wire.model`."""
        return observe(name, google_facts(name))


def _account(text: str) -> dict[str, Any] | None:
    """The service account in ``api_key``; its text is never part of an error."""
    if not text.strip():
        return None
    try:
        account = msgspec.json.decode(text)
    except msgspec.DecodeError:
        account = None
    if not isinstance(account, dict) or account.get("type") != "service_account":
        raise InvalidRequestError(
            "api_key of vertex-google is the JSON text of a service account; empty for application default credentials",
            parameter="api_key",
        )
    return account


def _observed(name: str, version: str | None) -> ObservedModel:
    short = name.rpartition("/")[2]
    found = observe(short, google_facts(short), meta={"version": version} if version else {})
    return structs.replace(found, evidence={**found.evidence, **({"version": "declared"} if version else {})})


def make_catalog(spec: BackendSpec, options: CatalogOptions) -> WireCatalog:
    """A catalog of one project and location. No network, no SDK.

    :raises InvalidRequestError: the address or the key cannot be used.
    """
    return WireCatalog(VertexWire(spec, options))
