"""A fake vendor as a backend of a node."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from modeld.node.backends import ConfiguredBackend
from modeld.node.gateway import Gateway
from modeld.testing.openai import FakeOpenAI


@asynccontextmanager
async def cloud(root: Path) -> AsyncIterator[FakeOpenAI]:
    """OpenAI's fake, registered as ``cloud`` in the data root."""
    async with FakeOpenAI() as fake:
        gateway = Gateway(root)
        try:
            spec = ConfiguredBackend(name="cloud", type="openai", base_url=f"{fake.url}/v1")
            await gateway.register_backend(spec, secret=fake.key, replace=True)
            yield fake
            await gateway.remove_backend("cloud")
        finally:
            await gateway.aclose()
