"""``modeld launch``: what well-known tools want to be told so that they call this node."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Final

import typer
from msgspec import Struct

from modeld.cli.options import DataRootOption, JsonOption, root_of
from modeld.cli.output import emit
from modeld.cli.web import Asked, model_to_ask, web_address
from modeld.errors import InvalidRequestError

_OPENAI_SNIPPET: Final = """\
from pathlib import Path
from openai import OpenAI

client = OpenAI(base_url={base}, api_key=Path({token}).read_text().strip())
answer = client.chat.completions.create(model={model}, messages=[{{"role": "user", "content": "Hello!"}}])
print(answer.choices[0].message.content)"""

_ANTHROPIC_SNIPPET: Final = """\
from pathlib import Path
from anthropic import Anthropic

client = Anthropic(base_url={base}, api_key=Path({token}).read_text().strip())
answer = client.messages.create(model={model}, max_tokens=500, messages=[{{"role": "user", "content": "Hello!"}}])
print("".join(block.text for block in answer.content if block.type == "text"))"""


# A node refuses by name what is no function: its own web search, and the items (agent_message) its subagents write.
_CODEX: Final = (
    "codex -c model_provider=modeld -c {provider}{window} -c web_search=disabled -c features.multi_agent=false "
    "--model {model}"
)
_CODEX_PROVIDER: Final = (
    'model_providers.modeld={{name="modeld", base_url="{base}", env_key="MODELD_API_KEY", wire_api="responses"}}'
)
_CODEX_WINDOW: Final = " -c model_context_window={window}"


class Tool(Struct, frozen=True):
    """A tool and how it is told where to call.

    :param dialect: whose API it speaks. :param key: the variable for the token. :param base: likewise, for the address.
    :param models: likewise, for the model's name; empty: ``command`` says it. :param fixed: variables with a value of
        their own. :param window: variable for the tokens of a conversation: of models it does not know a tool believes
        some window, and then runs into the real one. :param snippet: a program, for an SDK.
    """

    title: str
    dialect: str
    base: str = ""
    key: str = ""
    models: tuple[str, ...] = ()
    fixed: tuple[tuple[str, str], ...] = ()
    window: str = ""
    command: str = ""
    snippet: str = ""


TOOLS: Final = {
    "openai": Tool("OpenAI's SDK for Python", "openai", snippet=_OPENAI_SNIPPET),
    "anthropic": Tool("Anthropic's SDK for Python", "anthropic", snippet=_ANTHROPIC_SNIPPET),
    "openai-env": Tool("Anything that speaks OpenAI's API", "openai", "OPENAI_BASE_URL", "OPENAI_API_KEY"),
    "anthropic-env": Tool(
        "Anything that speaks Anthropic's API", "anthropic", "ANTHROPIC_BASE_URL", "ANTHROPIC_AUTH_TOKEN"
    ),
    "claude-code": Tool(
        "Claude Code",
        "anthropic",
        "ANTHROPIC_BASE_URL",
        "ANTHROPIC_AUTH_TOKEN",
        # It calls the small one for titles and summaries, and each of them for an agent that names it.
        ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("HAIKU", "SONNET", "OPUS"))),
        # Else a line that changes at every call begins the system prompt, and all behind it is computed again.
        (("CLAUDE_CODE_ATTRIBUTION_HEADER", "0"),),
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS",
        "claude",
    ),
    "codex": Tool("Codex", "openai", key="MODELD_API_KEY", command=_CODEX),
    "aider": Tool("Aider", "openai", "OPENAI_API_BASE", "OPENAI_API_KEY", command="aider --model {openai_model}"),
}
"""By the name that is typed."""


class Settings(Struct, frozen=True):
    """What a tool is told. The token is in none of it: ``token_file`` holds it.

    :param window: tokens of a conversation; 0: not known, as of a backend's model, and then the tool is not told.
    :param env: variables and their values. :param secret: the variable whose value is the token. :param text: for a
        terminal: lines of a shell, or a program.
    """

    tool: str
    title: str
    base_url: str
    token_file: str
    model: str
    window: int
    env: dict[str, str]
    secret: str
    text: str


def launch(
    tool: Annotated[
        str, typer.Argument(metavar="[TOOL]", help=f"One of {', '.join(TOOLS)}. Without it: all of them.")
    ] = "",
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Model the tool shall use. Default: the resident one, else tiny.")
    ] = "",
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Print the settings with which well-known tools call this node over HTTP. Changes nothing, and shows no token."""
    from modeld.transport.security import token_path

    if tool and tool not in TOOLS:
        raise InvalidRequestError(f"{tool!r} is none of {', '.join(TOOLS)}; most others take what openai-env prints")
    root = root_of(data_root)
    address, path, asked = web_address(root), token_path(root), model_to_ask(root, model)
    found = [settings(name, address, path, asked) for name in ([tool] if tool else TOOLS)]
    if as_json:
        emit(found[0] if tool else found)
    else:
        print("\n\n".join(f"# {one.title} ({one.tool})\n{one.text}" for one in found))
    return 0


def settings(name: str, address: str, token: Path, asked: Asked) -> Settings:
    """What the tool of that name is told of a node at ``address``."""
    tool, model = TOOLS[name], asked.name
    base = f"{address}/v1" if tool.dialect == "openai" else address
    env = ({tool.base: base} if tool.base else {}) | dict.fromkeys(tool.models, model) | dict(tool.fixed)
    if tool.window and asked.window:
        env[tool.window] = str(asked.window)
    if tool.snippet:
        text = tool.snippet.format(base=repr(base), token=repr(str(token)), model=repr(model))
    else:
        lines = [f"export {key}={shlex.quote(value)}" for key, value in env.items()]
        lines.append(f'export {tool.key}="$(cat {shlex.quote(str(token))})"')
        provider = _CODEX_PROVIDER.format(base=base)
        words = {"model": model, "openai_model": f"openai/{model}", "provider": provider}
        window = _CODEX_WINDOW.format(window=asked.window) if asked.window else ""
        lines.append(tool.command.format(window=window, **{key: shlex.quote(word) for key, word in words.items()}))
        text = "\n".join(line for line in lines if line)
    return Settings(name, tool.title, base, str(token), model, asked.window, env, tool.key, text)
