"""Hazard: ``import modeld`` grows heavy. The module set is asserted, never the time."""

import json
import subprocess
import sys

HEAVY = {"grpc", "google", "llama_cpp", "openvino", "psutil", "numpy", "jinja2", "typer", "click", "rich", "asyncio"}


def loaded_by(code: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter holds after ``code``, less those it starts with."""
    program = (
        f"import sys; before = set(sys.modules); {code}; import json; print(json.dumps([*set(sys.modules) - before]))"
    )
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    return {name.partition(".")[0] for name in json.loads(found)}


def test_import_loads_nothing_heavy() -> None:
    assert not loaded_by("import modeld") & HEAVY


def test_the_measurement_sees_a_heavy_module() -> None:
    assert "psutil" in loaded_by("import modeld, psutil")


def test_the_values_load_nothing_heavy() -> None:
    assert not loaded_by("import modeld.types, modeld.errors, modeld.session") & HEAVY


def test_http_is_loaded_by_nodes_that_serve_it_only() -> None:
    web = {"starlette", "uvicorn", "h11"}
    assert not loaded_by("import modeld.cli.serve, modeld.http.door, modeld.transport.host") & web
    assert web <= loaded_by("import modeld.http.server, modeld.http.routes")
