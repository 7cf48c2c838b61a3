"""A stop string ends the answer at the same byte however the bytes are cut."""

from hypothesis import given
from hypothesis import strategies as st

from modeld.chat.stops import StopMatcher


def naive(data: bytes, stops: list[str]) -> tuple[bytes, str | None]:
    hits = [(data.find(s.encode()), -len(s.encode()), s) for s in stops if s.encode() in data]
    if not hits:
        return data, None
    at, _, stop = min(hits)
    return data[:at], stop


def run(pieces: list[bytes], stops: list[str]) -> tuple[bytes, str | None]:
    matcher = StopMatcher(stops)
    out = b""
    for piece in pieces:
        told = matcher.matched
        passed, stop = matcher.feed(piece)
        out += passed
        assert stop == matcher.matched
        assert told is None or passed == b""
        assert matcher.passed == len(out)
    out += matcher.finish()
    assert matcher.passed == len(out)
    return out, matcher.matched


letters = st.text(alphabet="abé\n", max_size=4)


@given(st.lists(letters, max_size=12), st.lists(letters.filter(bool), max_size=5))
def test_any_cut_equals_a_search_of_the_whole(pieces: list[str], stops: list[str]) -> None:
    data = "".join(pieces).encode()
    expected = naive(data, stops)
    assert run([p.encode() for p in pieces], stops) == expected
    assert run([data], stops) == expected
    assert run([data[i : i + 1] for i in range(len(data))], stops) == expected


@given(st.lists(st.binary(max_size=5), max_size=10), st.lists(st.text(min_size=1, max_size=3), max_size=64))
def test_any_bytes_and_any_stops_equal_a_search_of_the_whole(pieces: list[bytes], stops: list[str]) -> None:
    assert run(pieces, stops) == naive(b"".join(pieces), stops)


def test_the_earliest_wins_then_the_longest() -> None:
    assert run([b"xa", b"bc", b"d!"], ["bc", "abcd"]) == (b"x", "abcd")
    assert run([b"xa", b"bc", b"e!"], ["bc", "abcd"]) == (b"xa", "bc")
    assert run([b"ab", b"c"], ["ab", "abc"]) == (b"", "abc")
    assert run([b"ab"], ["ab", "abc"]) == (b"", "ab")


def test_only_what_may_still_match_is_held_back() -> None:
    matcher = StopMatcher(["\nUser:", "[END]"])
    assert matcher.feed(b"one\nU") == (b"one", None)
    assert matcher.feed(b"sed [") == (b"\nUsed ", None)
    assert matcher.feed(b"END] more") == (b"", "[END]")
    assert matcher.feed(b"after") == (b"", "[END]")
    assert (matcher.finish(), matcher.passed) == (b"", 9)


def test_without_stop_strings_everything_passes() -> None:
    matcher = StopMatcher([])
    assert matcher.feed(b"all") == (b"all", None)
    assert (matcher.finish(), matcher.passed, matcher.matched) == (b"", 3, None)
