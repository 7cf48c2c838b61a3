"""``openvino``: models in OpenVINO's IR, executed by the node of this machine.

``base_url`` is a folder of folders; each model's has ``openvino_model.xml``, or ``openvino_language_model.xml`` where
the model has several parts (the names that ``optimum-cli export openvino`` gives). All else is as for ``llama``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import structs

from modeld.providers.llama import Found, LocalWire
from modeld.repository.provider import WireCatalog
from modeld.repository.values import BackendSpec, CapabilityConfig, ObservedModel

if TYPE_CHECKING:
    from modeld.repository.catalog import CatalogOptions

_ENTRIES: Final = ("openvino_model.xml", "openvino_language_model.xml")


def make_catalog(spec: BackendSpec, options: CatalogOptions) -> WireCatalog:
    """See :func:`modeld.repository.new_catalog_provider`."""
    return WireCatalog(OpenvinoWire(spec, options))


class OpenvinoWire(LocalWire):
    """Folders with OpenVINO's IR."""

    type = "openvino"
    extra = "openvino"

    def capabilities(self, model: ObservedModel) -> CapabilityConfig:
        """See :meth:`LocalWire.capabilities`. No such model makes vectors."""
        return structs.replace(super().capabilities(model), can_embed=False)

    def find(self, folder: Path) -> Iterator[Found]:
        """Folders by the names of the files in them. All their files count, those of inner folders do not."""
        for inner in filter(Path.is_dir, folder.iterdir()):
            if any((inner / entry).is_file() for entry in _ENTRIES):
                yield inner.name, inner, [file for file in inner.iterdir() if file.is_file()]
