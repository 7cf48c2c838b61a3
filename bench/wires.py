"""A loopback server with one long streamed answer for each vendor's wire, in a process of its own.

python bench/wires.py CHUNKS    prints its port, serves until stdin ends
"""

from __future__ import annotations

import asyncio
import json
import sys


def words(chunks: int) -> list[str]:
    """Not always the same: LiteLLM takes a model that repeats itself for broken."""
    return [f" word{number % 97}" for number in range(chunks)]


def openai(chunks: int) -> list[bytes]:
    """Chat Completions, usage last."""
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o"}

    def event(delta: dict[str, object], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return sse({**base, "system_fingerprint": "fp_1", "choices": [choice], "usage": None})

    usage = {"prompt_tokens": 5, "completion_tokens": chunks, "total_tokens": chunks + 5}
    head = event({"role": "assistant", "content": "", "refusal": None})
    tail = [event({}, "stop"), sse({**base, "choices": [], "usage": usage}), b"data: [DONE]\n\n"]
    return [head, *[event({"content": word}) for word in words(chunks)], *tail]


def anthropic(chunks: int) -> list[bytes]:
    """Messages."""
    message: dict[str, object] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 1},
    }
    deltas: list[dict[str, object]] = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
        for word in words(chunks)
    ]
    start: dict[str, object] = {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": ""},
    }
    end: dict[str, object] = {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": chunks},
    }
    events: list[dict[str, object]] = [{"type": "message_start", "message": message}, start, *deltas]
    events += [{"type": "content_block_stop", "index": 0}, end, {"type": "message_stop"}]
    return [f"event: {event['type']}\n".encode() + sse(event) for event in events]


def gemini(chunks: int) -> list[bytes]:
    """streamGenerateContent?alt=sse."""

    def event(word: str, finish: str | None = None) -> bytes:
        candidate = {"content": {"parts": [{"text": word}], "role": "model"}, "index": 0}
        usage = {"promptTokenCount": 5, "candidatesTokenCount": chunks, "totalTokenCount": chunks + 5}
        last = {"finishReason": finish} if finish else {}
        return sse(
            {
                "candidates": [{**candidate, **last}],
                "usageMetadata": usage,
                "modelVersion": "gemini-2.5-flash",
                "responseId": "r1",
            }
        )

    return [*[event(word) for word in words(chunks - 1)], event(" end", "STOP")]


def ollama(chunks: int) -> list[bytes]:
    """/api/chat, lines of JSON."""
    base = {"model": "qwen3:8b", "created_at": "2026-01-01T00:00:00.000000Z"}
    pieces = [{**base, "message": {"role": "assistant", "content": word}, "done": False} for word in words(chunks)]
    last = {
        **base,
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "total_duration": 1,
        "prompt_eval_count": 5,
        "eval_count": chunks,
    }
    return [json.dumps(line).encode() + b"\n" for line in [*pieces, last]]


def sse(event: object) -> bytes:
    """One event."""
    return b"data: " + json.dumps(event).encode() + b"\n\n"


SHOW = {
    "capabilities": ["completion", "tools"],
    "details": {"family": "qwen3"},
    "model_info": {"general.architecture": "qwen3", "qwen3.context_length": 40960},
}


async def main(chunks: int) -> None:
    """Serve until nobody holds the other end of stdin."""
    answers = {
        "/v1/chat/completions": ("text/event-stream", openai(chunks)),
        "/v1/messages": ("text/event-stream", anthropic(chunks)),
        ":streamGenerateContent": ("text/event-stream", gemini(chunks)),
        "/api/chat": ("application/x-ndjson", ollama(chunks)),
        "/api/show": ("application/json", [json.dumps(SHOW).encode()]),
    }

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next((int(v) for k, _, v in (h.partition(":") for h in head.split("\r\n")) if is_length(k)), 0)
                await reader.readexactly(length)
                path = head.split(" ")[1].partition("?")[0]
                kind, pieces = next(answer for suffix, answer in answers.items() if path.endswith(suffix))
                writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
                for piece in pieces:
                    # One chunk of HTTP for each event, as servers write that flush after every token.
                    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    await writer.drain()
                writer.write(b"0\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


def is_length(name: str) -> bool:
    """Whether a header says how long the body is."""
    return name.strip().lower() == "content-length"


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
