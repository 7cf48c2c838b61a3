"""Traces of agents at work, a driver that plays them against a node, and the least that a node can compute for them.

A trace is data and depends on its seed alone. What a message holds of earlier answers is filled in while it is played.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from modeld.session import ModelService, Session, SessionConfig
from modeld.session.values import SessionClass
from modeld.types import ChatResult, DecodeOptions, FunctionCall, FunctionTool, Message, Tool, ToolCall
from support.engines import EngineCase, tiny_tokens

NAMES = ("river", "stone", "lotus", "amber", "copper", "kite", "maple", "silver", "ocean", "brick", "cedar", "cloud")
"""Words that tiny repeats. Asked in others it thinks, whether it may or not."""
ODD = ("über", "naïve", "łódź", "\N{SNOWMAN}", "\N{PILE OF POO}", "{x:1}", "[a,b]", "=>", "'quoted'", "end.\n- item")
CODE = (
    "parse_line",
    "self.index",
    "foo(bar)",
    "README.md",
    "42",
    "3.14",
    "0x7f",
    "CamelCase",
    "\n\n\tindented",
    "a/b?c=d",
)
WORDS = (*NAMES, *ODD, *CODE, "the", "of", "and", "returns", "retry-after", "however,", "therefore;")
CITIES = ("Oslo", "Paris", "Lima", "Cairo", "Tokyo", "Rome", "Quito", "Delhi")


@dataclass(frozen=True)
class Size:
    """How large a trace is. Texts have this many tokens of tiny's, or a few more.

    :param system: of the system prompt, which all agents and subagents share, and the tools with it.
    :param turn: of what a user says. :param result: of a tool's result. :param turns: of each agent, at least 2.
    :param max_tokens: of an answer. :param subagents: of each client. :param branches: likewise.
    """

    system: int = 300
    turn: int = 10
    result: int = 10
    turns: int = 3
    max_tokens: int = 32
    subagents: int = 1
    branches: int = 1


@dataclass(frozen=True)
class Answer:
    """Stands for the answer to one of the client's calls."""

    call: int


@dataclass(frozen=True)
class Results:
    """Stands for a result for each tool call in an answer; where it called nothing, the user says the text."""

    call: int
    text: str


Item = Message | Answer | Results


@dataclass(frozen=True)
class Call:
    """One call of a client.

    :param session: its name; the client's number is the workspace.
    :param fork_of: the session is made from this one by ``fork()``; empty: it is opened.
    """

    session: str
    kind: SessionClass
    items: tuple[Item, ...]
    tools: tuple[Tool, ...]
    options: DecodeOptions
    fork_of: str = ""

    def messages(self, answers: Sequence[Message]) -> tuple[Message, ...]:
        """The conversation, given the answers to the client's calls so far."""
        messages: list[Message] = []
        for item in self.items:
            match item:
                case Message():
                    messages.append(item)
                case Answer(call):
                    messages.append(answers[call])
                case Results(call, text):
                    called = [Message("tool", text, tool_call_id=made.id) for made in answers[call].tool_calls]
                    messages += called or [Message("user", text)]
        return tuple(messages)


class Trace:
    """For each client its calls, in order.

    Each client is an agent of some turns. In one of them the user asks for what a tool knows; in another the program
    has called a tool already. Beside it there are a small side call (a title), subagents with a task of their own, and
    branches: the last question is asked in other words in a new session, and both conversations go on. Half of the
    branches are made by ``fork()``, the others are new to the node. No two prompts are equal
    (by chance: with turns of 10 tokens there are a million first questions).
    """

    def __init__(self, clients: int, seed: int, size: Size | None = None) -> None:
        size = size or Size()
        random_ = random.Random(f"{clients} {seed}")
        system = Message("system", "You are a helpful agent.\n" + text(random_, size.system))
        tools = (_tool("get_weather", "Get the weather in a city.", "city"), _tool("read_file", "Read a file.", "path"))
        self.calls = [_Client(random_, size, system, tools).calls for _ in range(clients)]


class _Client:
    """Writes the calls of one client."""

    def __init__(self, random_: random.Random, size: Size, system: Message, tools: tuple[Tool, ...]) -> None:
        self._random = random_
        self._size = size
        self._system = system
        self._tools = tools
        self._options = DecodeOptions(temperature=0, max_tokens=size.max_tokens)
        self.calls: list[Call] = []
        main = self._conversation("agent", "main", size.turns, title=True)
        for number in range(size.subagents):
            self._conversation(f"subagent-{number}", "subagent", 2)
        for number in range(size.branches):
            self._branch(main, number)

    def _call(
        self, session: str, kind: SessionClass, items: list[Item], tools: tuple[Tool, ...], fork_of: str = ""
    ) -> Answer:
        self.calls.append(Call(session, kind, tuple(items), tools, self._options, fork_of))
        return Answer(len(self.calls) - 1)

    def _said(self) -> str:
        return "Repeat: " + text(self._random, self._size.turn, NAMES)

    def _asked(self) -> str:
        number = self._random.randrange(5, 61)
        return self._random.choice((self._said(), f"Count to {number}.", f"Remember that kite is {number}."))

    def _conversation(self, session: str, kind: SessionClass, turns: int, *, title: bool = False) -> list[Item]:
        """:returns: the whole, the last answer included."""
        # The first question is in words of its own, so that no two conversations are the same.
        weather = self._random.randrange(1, turns)
        injected = self._random.choice([turn for turn in range(turns) if turn != weather])
        items: list[Item] = [self._system]
        for turn in range(turns):
            if turn == weather:
                items.append(Message("user", f"What is the weather in {self._random.choice(CITIES)}?"))
                items.append(self._call(session, kind, items, self._tools))
                items.append(Results(len(self.calls) - 1, self._result()))
            else:
                items.append(Message("user", self._asked() if turn else self._said()))
            if turn == injected:
                items += self._injected(f"{session}{turn}")
            items.append(self._call(session, kind, items, self._tools))
            if title and not turn:
                self._title(items)
        return items

    def _injected(self, name: str) -> list[Item]:
        """A tool that the program called on the model's behalf."""
        arguments = f'{{"path": "src/{self._random.choice(NAMES)}.py"}}'
        call = ToolCall(f"call_{name}", FunctionCall("read_file", arguments))
        return [
            Message("assistant", tool_calls=(call,)),
            Message("tool", self._result(), tool_call_id=call.id),
        ]

    def _result(self) -> str:
        return f'{{"result": "{text(self._random, self._size.result)}"}}'

    def _title(self, items: list[Item]) -> None:
        first = items[1]
        assert isinstance(first, Message)
        self._call("title", "side", [Message("system", "Write a short title."), first], ())

    def _branch(self, items: list[Item], number: int) -> None:
        """Ask a question, ask it in other words in a new session, then go on with both conversations."""
        session = f"branch-{number}"
        fork_of = self._random.choice(("agent", ""))
        asked = self._said()
        words = asked.split(" ")
        edited = " ".join([*words[: len(words) // 2], text(self._random, self._size.turn // 2, NAMES)])
        branch = [*items, Message("user", edited)]
        items.append(Message("user", asked))
        items.append(self._call("agent", "main", items, self._tools))
        branch.append(self._call(session, "main", branch, self._tools, fork_of))
        for name, conversation in (("agent", items), (session, branch)):
            conversation.append(Message("user", self._said()))
            conversation.append(self._call(name, "main", conversation, self._tools))


def text(random_: random.Random, tokens: int, of: Sequence[str] = WORDS) -> str:
    """Words that are at least ``tokens`` tokens of tiny's."""
    words = random_.choices(of, k=tokens)
    fewest = next(n for n in range(1, tokens + 1) if len(tiny_tokens(" ".join(words[:n]))) >= tokens)
    return " ".join(words[:fewest])


def _tool(name: str, description: str, parameter: str) -> Tool:
    schema = {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]}
    return Tool(FunctionTool(name, description, schema))


@dataclass(frozen=True)
class Made:
    """A call that was made, and what came of it."""

    engine: EngineCase
    client: int
    call: Call
    messages: tuple[Message, ...]
    result: ChatResult

    @cached_property
    def prompt(self) -> list[int]:
        """Ids of the rendered conversation, from template and tokeniser alone."""
        return self.engine.prompt(self.messages, self.call.tools, "off")

    @cached_property
    def answer(self) -> list[int]:
        """Ids of the answer, with the end token where the model gave one. Empty where the model thought: the template
        shows none of that."""
        message, end = self.result.message, self.result.end
        if message.thinking:
            return []
        rendered = self.engine.template().render(
            [*self.messages, message], self.call.tools, think="off", add_generation_prompt=False
        )
        assert end.usage.output is not None
        last = len(self.prompt) + end.usage.output + (end.finish_reason != "length")
        return self.engine.tokenize(rendered)[len(self.prompt) : last]

    @property
    def decoded(self) -> list[int]:
        """The prompt, and what decoding has made KV of: the last token was sampled, and nothing computed with it."""
        return self.prompt + self.answer[:-1]


async def run_trace(service: ModelService, engine: EngineCase, trace: Trace) -> list[Made]:
    """Play all clients at the same time, the calls of each in order."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_run_client(service, engine, number, calls)) for number, calls in enumerate(trace.calls)
        ]
    return [made for task in tasks for made in task.result()]


async def _run_client(service: ModelService, engine: EngineCase, client: int, calls: list[Call]) -> list[Made]:
    sessions: dict[str, Session] = {}
    made: list[Made] = []
    workspace = f"client-{client}"
    for call in calls:
        session = sessions.get(call.session)
        if session is None and call.fork_of:
            session = await sessions[call.fork_of].fork(call.session, workspace=workspace)
        elif session is None:
            config = SessionConfig(workspace=workspace, name=call.session, session_class=call.kind)
            session = await service.open_session(engine.ref, config)
        sessions[call.session] = session
        messages = call.messages([one.result.message for one in made])
        result = await session.turn(messages, tools=call.tools, think="off", options=call.options).join()
        made.append(Made(engine, client, call, messages, result))
    return made


@dataclass(frozen=True)
class Bound:
    """What arithmetic asks of a node that forgets nothing, whatever the order of the calls. All are tokens.

    :param prompts: of the trie of all prompts. :param new: those of them whose KV no decoding makes: what has to be
        prefilled at least. :param cells: of the trie of all prompts and answers: what has to be held.
    """

    prompts: int
    new: int
    cells: int


class Trie:
    """Beginnings of token sequences; each has a number, 0 is the empty one."""

    def __init__(self) -> None:
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._children)

    def add(self, tokens: Sequence[int]) -> list[int]:
        """:returns: the numbers of all beginnings of ``tokens``, from the shortest."""
        node, path = 0, []
        for token in tokens:
            node = self._children.setdefault((node, token), len(self._children) + 1)
            path.append(node)
        return path


def least_prefill(trace: Sequence[Made]) -> Bound:
    """The bound of a trace that was played: from template, tokeniser and the answers alone."""
    trie = Trie()
    for made in trace:
        trie.add(made.prompt)
    prompts = len(trie)
    answered = {node for made in trace for node in trie.add(made.decoded)[len(made.prompt) :]}
    # Nodes are numbered as they come: those of prompts first.
    return Bound(prompts, prompts - sum(node <= prompts for node in answered), len(trie))


def prefilled(trace: Sequence[Made]) -> int:
    """Tokens that the node says it computed for prompts."""
    return sum(made.result.receipt.prefilled for made in trace)
