"""Hazard: a vendor's failure becomes the wrong error, shows a key, or loses the numbers that were in it."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld import (
    AuthenticationError,
    BackendError,
    BackendUnavailableError,
    ContextOverflowError,
    InvalidRequestError,
    ModeldError,
    ModelNotFoundError,
    QuotaError,
    RateLimitError,
)
from modeld.providers.failures import Failure, failure_error, retry_after


@pytest.mark.parametrize(
    ("status", "cls", "retryable"),
    [
        (400, InvalidRequestError, False),
        (401, AuthenticationError, False),
        (402, QuotaError, False),
        (404, ModelNotFoundError, False),
        (408, BackendUnavailableError, True),
        (418, BackendError, False),
        (422, InvalidRequestError, False),
        (429, RateLimitError, True),
        (500, BackendUnavailableError, True),
        (529, BackendUnavailableError, True),
    ],
)
def test_a_status_has_a_class(status: int, cls: type[ModeldError], retryable: bool) -> None:
    error = failure_error("x", "m", Failure(message="why", status=status), {})
    assert type(error) is cls
    assert error.retryable is retryable
    assert error.details["status"] == status
    assert "why" in error.message


def test_a_code_wins_over_the_status() -> None:
    error = failure_error("x", "m", Failure(message="", status=429, code="insufficient_quota"), CODES)
    assert type(error) is QuotaError


CODES = {"insufficient_quota": QuotaError}


@pytest.mark.parametrize(
    ("said", "tokens", "window"),
    [
        (
            "This model's maximum context length is 128000 tokens. However, your messages resulted in 130001 tokens.",
            130001,
            128000,
        ),
        ("prompt is too long: 213462 tokens > 200000 maximum", 213462, 200000),
        (
            "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
            1200000,
            1048576,
        ),
        ("This model's maximum context length is 4,096 tokens. You asked for 5,000 input tokens.", 5000, 4096),
        (
            "Prompt contains 40046 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
            40046,
            32768,
        ),
        ("input length and `max_tokens` exceed context limit: 199000 + 8000 > 200000", 207000, 200000),
        ("the request exceeds the available context size (4096 tokens), try increasing it", None, 4096),
        ("the context length was exceeded", None, None),
    ],
)
def test_an_overflow_keeps_the_vendors_numbers(said: str, tokens: int | None, window: int | None) -> None:
    error = failure_error("x", "m", Failure(message=said, status=400), {})
    assert type(error) is ContextOverflowError
    assert (error.details.get("tokens"), error.details.get("window")) == (tokens, window)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    seconds = retry_after({"retry-after": format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)})
    assert seconds is not None
    assert 25 < seconds <= 30
    assert retry_after({"retry-after": format_datetime(datetime(2001, 1, 1, tzinfo=UTC), usegmt=True)}) == 0


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms"]), st.text(max_size=30)))
def test_a_hostile_header_never_fails(headers: dict[str, str]) -> None:
    assert (retry_after(headers) or 0) >= 0


@pytest.mark.parametrize("key", ["sk-proj-abcdefghijklmnop", "AIzaSyA1234567890abcdef", "Bearer abcdef.ghijklmnop"])
def test_a_key_that_the_vendor_quotes_is_masked(key: str) -> None:
    error = failure_error("x", "m", Failure(message=f"Incorrect API key provided: {key}. See", status=401), {})
    assert key not in f"{error.message} {error.details}"
    assert "[key]" in error.message


def test_a_long_page_is_cut() -> None:
    assert len(failure_error("x", "m", Failure(message="x" * 10**6, status=500), {}).message) < 700


@pytest.mark.parametrize(
    "said",
    [
        "API key not valid. Please pass a valid API key.",
        "The key of this project expired yesterday",
        "Incorrect API key provided: see https://platform.openai.com/account/api-keys",
    ],
)
def test_ordinary_words_about_keys_stay(said: str) -> None:
    assert said in failure_error("x", "m", Failure(message=said, status=401), {}).message
