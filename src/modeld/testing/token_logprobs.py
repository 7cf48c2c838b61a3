"""How the fakes of the vendors write what a scripted answer says of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modeld.types import TokenLogprob, TopLogprob

Entry = dict[str, Any]


def shares(tokens: Sequence[TokenLogprob], pieces: int) -> list[Sequence[TokenLogprob]]:
    """``tokens`` in that many pieces of a stream, in order; the last ones may be empty."""
    size = -(-len(tokens) // max(1, pieces))
    return [tokens[place * size : (place + 1) * size] for place in range(pieces)]


def token_entries(tokens: Sequence[TokenLogprob], top: int) -> list[Entry]:
    """As OpenAI writes them, with at most ``top`` alternatives."""
    return [{**_entry(token), "top_logprobs": [_entry(other) for other in token.top[:top]]} for token in tokens]


def _entry(token: TokenLogprob | TopLogprob) -> Entry:
    return {"token": token.data.decode("utf-8", "replace"), "logprob": token.logprob, "bytes": list(token.data)}


def candidate_entries(tokens: Sequence[TokenLogprob], top: int) -> Entry:
    """As Google writes them (``LogprobsResult`` of its SDK)."""
    best = [{"candidates": [_candidate(other) for other in token.top[:top]]} for token in tokens]
    return {"chosenCandidates": [_candidate(token) for token in tokens]} | ({"topCandidates": best} if top else {})


def _candidate(token: TokenLogprob | TopLogprob) -> Entry:
    return {"token": token.data.decode("utf-8", "replace"), "tokenId": token.token, "logProbability": token.logprob}
