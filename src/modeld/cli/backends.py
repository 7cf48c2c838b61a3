"""``modeld backends``: vendors, servers and nodes, by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

import typer

from modeld.cli.connection import finish
from modeld.cli.errors import guarded, usage
from modeld.cli.options import DataRootOption, JsonOption, root_of
from modeld.cli.output import emit, say, table
from modeld.errors import AuthenticationError, InvalidRequestError, NodeError

if TYPE_CHECKING:
    from modeld.node.backends import ConfiguredBackend
    from modeld.repository.values import ObservedModel
    from modeld.session.contract import ModelService
    from modeld.transport.leader import LeaderNode

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="What --backend calls it.")]

_NO_KEY: Final = ("vllm", "ollama", "vertex-google", "llama", "openvino")
"""Types that do without a key; for all others, those of a new row or of another package too, one is asked for."""
_HTTP: Final = ("openai", "gemini", "anthropic", "mistral", "openrouter", "vllm", "ollama", "vertex-google")
_MAX_SECRET: Final = 64 * 1024


def add(
    name: NameArgument,
    kind: Annotated[
        str,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="modeld (a node), openai, gemini, vertex-google, vllm, ollama, anthropic, mistral, openrouter, llama "
            "or openvino.",
        ),
    ] = "modeld",
    url: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Where it is; default: the vendor's own. modeld: modeld+tls://HOST:PORT, or modeld://127.0.0.1:PORT "
            "on this machine. llama, openvino: a folder of models.",
        ),
    ] = "",
    key: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="Where its key is: env:NAME, file:PATH (mode 0600) or keyring:SERVICE/USER; - reads the key from "
            "stdin, and a terminal is asked, which is the default where the type needs one; '' is no key.",
        ),
    ] = None,
    pin: Annotated[
        str,
        typer.Option(
            metavar="sha256:HEX",
            help="modeld: trust this certificate only. Without it one that a public authority issued for HOST.",
        ),
    ] = "",
    token_file: Annotated[
        str | None,
        typer.Option(metavar="FILE|-", help="modeld: file with the node's token. - (the default) is as --key -."),
    ] = None,
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Register a backend, with its key. It is not called.

    There is no option that takes the key itself: it would stay in the shell's history, and in the list of processes. A
    key that is typed or piped in lies in a file of mode 0600 in the data root.
    """
    from modeld.node.backends import ConfiguredBackend, checked_backend

    root = root_of(data_root)
    with usage():
        where = _address(kind, url)
        backend = checked_backend(ConfiguredBackend(name=name, type=kind, base_url=where, key=_reference(key), pin=pin))
        if backend.type == "modeld":
            backend = _checked_node(backend, key, token_file)
        else:
            _check_vendor(backend, token_file)
    if backend.type == "modeld":
        written = _add_node(root, backend, key, token_file)
    else:
        written = _add_vendor(root, backend, _typed_key(name) if _asks(backend.type, key) else "")
    if as_json:
        emit({"backend": _shown(written)})
    else:
        hint = f"status --backend {name}" if written.type == "modeld" else f"backends models {name}"
        print(f"{name} is registered; try: modeld {hint}")
    return 0


def list_(data_root: DataRootOption = None, as_json: JsonOption = False) -> int:
    """List the registered backends. Keys are never shown, but where they are."""
    from modeld.node.backends import list_backends

    found = list_backends(root_of(data_root))
    if as_json:
        emit({"backends": [_shown(backend) for backend in found]})
    else:
        rows = [(b.name, b.type, b.base_url or "-", b.key or "-", b.pin or "-") for b in found]
        table(("NAME", "TYPE", "URL", "KEY", "PIN"), rows)
    return 0


def rm(name: NameArgument, data_root: DataRootOption = None, as_json: JsonOption = False) -> int:
    """Forget a registered backend, and the key that was typed or piped in for it."""
    from modeld.node.backends import remove_backend

    remove_backend(root_of(data_root), name)
    if as_json:
        emit({"removed": name})
    else:
        print(f"{name} is forgotten")
    return 0


def models(name: NameArgument, data_root: DataRootOption = None, as_json: JsonOption = False) -> int:
    """List the models of a registered backend, with what is known of them and where from.

    declared: by the backend's listing; probed: by a request; measured: counted or timed; named: by a table of ours,
    for models of that name. What is not known is a dash.
    """
    found = finish(_models(root_of(data_root), name))
    if as_json:
        emit({"backend": name, "models": found})
    else:
        headers = ("MODEL", "CONTEXT", "OUTPUT", "CHAT", "EMBED", "THINK", "VISION")
        table(headers, [_row(model) for model in sorted(found, key=lambda model: model.name)])
    return 0


backends = typer.Typer(help="Register vendors, servers and nodes: add, list, rm, models.", no_args_is_help=True)
for _name, _command in (("add", add), ("list", list_), ("rm", rm), ("models", models)):
    backends.command(_name)(guarded(_command))


async def _models(root: Path, name: str) -> list[ObservedModel]:
    """The models. For those of this machine a node that runs is asked, and none is started."""
    from modeld.client import connect, set_data_root
    from modeld.node.gateway import Gateway
    from modeld.node.record import probe

    set_data_root(root)
    nodes: list[LeaderNode] = []

    async def node() -> ModelService:
        nodes.append(await connect(root))
        return nodes[-1]

    gateway = Gateway(root, node if probe(root).state == "running" else None)
    try:
        return await gateway.list_models(name)
    finally:
        await gateway.aclose()
        for opened in nodes:
            await opened.aclose()


def _row(model: ObservedModel) -> tuple[str, ...]:
    numbers = [_fact(model, name) for name in ("context_length", "max_output_tokens")]
    flags = [_fact(model, name) for name in ("can_chat", "can_embed", "can_think", "can_vision")]
    return model.name, *numbers, *flags


def _fact(model: ObservedModel, name: str) -> str:
    value = getattr(model.capabilities, name)
    evidence = model.evidence.get(name)
    if evidence is None and not value:
        return "-"
    text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    return text if evidence is None else f"{text} ({evidence})"


def _address(kind: str, url: str) -> str:
    """The address that --url is: of a folder the one it is here, not where the node runs."""
    from modeld.repository.catalog import canonical_backend_type

    local = canonical_backend_type(kind) in ("llama", "openvino")
    return str(Path(url).expanduser().absolute()) if local and url else url


def _reference(key: str | None) -> str:
    """The reference that --key is. A file is one of the folder it was named in, not of the data root."""
    if key in (None, "-"):
        return ""
    assert key is not None
    path = key.removeprefix("file:")
    return key if path in (key, "") else f"file:{Path(path).expanduser().absolute()}"


def _asks(kind: str, key: str | None) -> bool:
    return key == "-" or (key is None and kind not in _NO_KEY)


def _in_clear(backend: ConfiguredBackend) -> bool:
    """Whether the key of a backend crosses the network where others can read it."""
    from modeld.transport.security import is_loopback

    where = urlsplit(backend.base_url)
    return bool(backend.key) and where.scheme == "http" and not is_loopback(where.hostname or "")


def _checked_node(backend: ConfiguredBackend, key: str | None, token_file: str | None) -> ConfiguredBackend:
    import msgspec

    from modeld.transport.pinning import checked_pin, parse_url

    try:
        where = parse_url(backend.base_url)
    except InvalidRequestError as error:
        # Who forgot --type gets here too: a node is the default.
        raise InvalidRequestError(f"{error.message}; what is no node needs --type, as in --type openai") from error
    checked = checked_pin(backend.pin) if backend.pin else ""
    if checked and not where.tls:
        raise InvalidRequestError(f"a pin needs TLS: write modeld+tls://{where.address}")
    if key is not None and token_file is not None:
        raise InvalidRequestError("a node's token is given by --token-file or by --key, not by both")
    return msgspec.structs.replace(backend, pin=checked)


def _check_vendor(backend: ConfiguredBackend, token_file: str | None) -> None:
    from modeld.repository.catalog import default_catalog_factory

    known = default_catalog_factory().types()
    if backend.type not in known:
        raise InvalidRequestError(f"{backend.type[:40]!r} is no type of a backend; there are {', '.join(known)}")
    if backend.pin or token_file is not None:
        raise InvalidRequestError("--pin and --token-file are of type modeld; other keys are given by --key")
    if backend.type in _HTTP and backend.base_url and urlsplit(backend.base_url).scheme not in ("http", "https"):
        raise InvalidRequestError(f"the URL of type {backend.type} begins with https:// or http://")


def _add_node(root: Path, backend: ConfiguredBackend, key: str | None, token_file: str | None) -> ConfiguredBackend:
    from modeld.node.backends import add_backend
    from modeld.transport.security import checked_token

    if key not in (None, "-"):
        return add_backend(root, backend)
    return add_backend(root, backend, secret=checked_token(_token(token_file or "-")))


def _add_vendor(root: Path, backend: ConfiguredBackend, secret: str) -> ConfiguredBackend:
    from modeld.node.backends import read_secret
    from modeld.node.gateway import Gateway

    async def added() -> ConfiguredBackend:
        gateway = Gateway(root)
        try:
            return await gateway.register_backend(backend, secret=secret, known_key=False)
        finally:
            await gateway.aclose()

    written = finish(added())
    if _in_clear(written):
        say(f"registered, but {written.base_url} is no https: key and prompts cross the network in clear")
    try:
        read_secret(root, written)
    except AuthenticationError as error:
        # It may well be there where the node runs.
        say(f"registered, but here {error.message}")
    return written


def _shown(backend: ConfiguredBackend) -> dict[str, str]:
    """All that may be seen of it. A list of what is shown, so that a field that comes later is not."""
    return {
        "name": backend.name,
        "type": backend.type,
        "url": backend.base_url,
        "pin": backend.pin,
        "key": backend.key,
    }


def _token(source: str) -> str:
    if source != "-":
        try:
            return Path(source).read_text("ascii", "replace")
        except OSError as error:
            raise NodeError(f"cannot read {source!r}: {error.strerror}", path=source) from error
    return _typed("token (`modeld token --show` on the node's machine): ")


def _typed_key(name: str) -> str:
    text = _typed(f"key of {name}: ")
    if not text.strip():
        raise InvalidRequestError("no key came; --key env:NAME names a variable that holds it, and --key '' is no key")
    return text


def _typed(question: str) -> str:
    """A secret from stdin; a terminal is asked, and shows nothing. Empty after ctrl-D."""
    if sys.stdin.isatty():
        import getpass

        try:
            return getpass.getpass(question)
        except EOFError:
            print(file=sys.stderr)
            return ""
    # More than any secret, and no more: a pipe may have no end.
    return sys.stdin.buffer.read(_MAX_SECRET).decode("utf-8", "surrogateescape")
