"""Contract: prefix, suffix, decode, fork, snapshot, and how each refuses."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from modeld.errors import (
    BackendMismatchError,
    ContextOverflowError,
    DigestMismatchError,
    InvalidRequestError,
    ManifestMismatchError,
    ModeldError,
    ModelNotFoundError,
    SessionClosedError,
    SnapshotNotFoundError,
    StaleGenerationError,
)
from modeld.node import store
from modeld.session import ModelRef, Session, SessionConfig
from modeld.types import DecodeOptions, EndPart, Message, StreamPart, TextPart, ThinkingPart
from support.engines import TINY_F16, TINY_IR

from .conftest import World

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0, max_tokens=400)


async def parts_of(session: Session, ask: str, **settings: object) -> list[StreamPart]:
    options = DecodeOptions(temperature=0, **settings)  # type: ignore[arg-type]
    async with session.turn([Message("user", ask)], options=options) as stream:
        return [part async for part in stream]


async def test_prefix_suffix_decode_equal_one_turn(world: World) -> None:
    system, user = Message("system", "You are kind."), Message("user", world.engine.asks[1])
    session = await world.open()
    prefix = await session.ensure_prefix([system])
    assert prefix.receipt.prefilled == prefix.prefix_tokens == prefix.receipt.resident
    suffix = await session.prefill_suffix([user])
    assert suffix.receipt.reused == suffix.prefix_tokens == prefix.prefix_tokens
    assert suffix.prefix_tokens + suffix.suffix_tokens == len(world.engine.prompt([system, user]))
    assert suffix.available == world.engine.window - suffix.prefix_tokens - suffix.suffix_tokens
    stepwise = await session.decode(GREEDY).join()
    assert stepwise.receipt.prefilled == world.engine.again([system, user])
    turn = await (await world.open()).turn([system, user], options=GREEDY).join()
    assert stepwise.text == turn.text


async def test_prefix_keeps_what_follows_until_the_suffix_needs_it(world: World) -> None:
    system = Message("system", "You are kind.")
    conversation = [Message("user", world.engine.asks[0])]
    session = await world.open()
    first = await session.turn([system, *conversation], options=GREEDY).join()
    prefix = await session.ensure_prefix([system])
    assert prefix.receipt.prefilled == prefix.receipt.dropped == 0
    suffix = await session.prefill_suffix([*conversation, first.message, Message("user", world.engine.asks[1])])
    assert suffix.receipt.reused == first.receipt.resident
    assert suffix.receipt.dropped == 0


async def test_suffix_appends_to_suffix(world: World) -> None:
    session = await world.open()
    asks = [Message("user", ask) for ask in world.engine.asks[:2]]
    await session.ensure_prefix([Message("system", "You are kind.")])
    await session.prefill_suffix(asks[:1])
    second = await session.prefill_suffix(asks[1:])
    whole = [Message("system", "You are kind."), *asks]
    assert second.prefix_tokens + second.suffix_tokens == len(world.engine.prompt(whole))


async def test_decode_goes_on_where_it_was_cut(world: World) -> None:
    whole = await (await world.open()).turn([Message("user", world.engine.long_ask)], options=GREEDY).join()
    session = await world.open()
    first = await session.turn(
        [Message("user", world.engine.long_ask)], options=DecodeOptions(temperature=0, max_tokens=7)
    ).join()
    assert (first.end.finish_reason, first.end.usage.output) == ("length", 7)
    rest = await session.decode(GREEDY).join()
    assert rest.receipt.prefilled == 1
    # Where the whole ended by itself so does the rest; else both are cut at their own 400 tokens.
    assert rest.end.finish_reason == whole.end.finish_reason
    if whole.end.finish_reason == "stop":
        assert first.text + rest.text == whole.text
    else:
        assert rest.end.usage.output == 400
        assert (first.text + rest.text).startswith(whole.text)


async def test_continued_answer_is_reused_by_the_next_turn(world: World) -> None:
    session = await world.open()
    conversation = [Message("user", world.engine.asks[1])]
    first = await session.turn(conversation, options=DecodeOptions(temperature=0, max_tokens=3)).join()
    rest = await session.decode(GREEDY).join()
    conversation += [Message("assistant", first.text + rest.text), Message("user", world.engine.asks[2])]
    result = await session.turn(conversation, options=GREEDY).join()
    assert result.receipt.stop is None
    assert result.receipt.reused == rest.receipt.resident


async def test_decode_from_nothing_is_an_error_and_the_session_lives(world: World) -> None:
    session = await world.open()
    with pytest.raises(InvalidRequestError, match="nothing to decode"):
        await session.decode(GREEDY).join()
    assert (await session.turn([Message("user", world.engine.asks[0])], options=GREEDY).join()).text


async def test_empty_conversation_is_an_error(world: World) -> None:
    session = await world.open()
    with pytest.raises(InvalidRequestError, match="no messages"):
        await session.turn([], options=GREEDY).join()


async def test_overflow_has_the_numbers_and_changes_nothing(world: World) -> None:
    session = await world.open()
    small = [Message("user", world.engine.asks[0])]
    first = await session.turn(small, options=GREEDY).join()
    huge = [*small, first.message, Message("user", "stone " * world.engine.window)]
    with pytest.raises(ContextOverflowError) as caught:
        await session.turn(huge, options=GREEDY).join()
    error = caught.value
    assert (error.stage, error.window) == ("turn", world.engine.window)
    assert error.resident == first.receipt.resident
    assert error.resident + error.additional == len(world.engine.prompt(huge))
    again = await session.turn(small, options=GREEDY).join()
    assert again.receipt.prefilled == world.engine.again(small)
    with pytest.raises(ContextOverflowError) as caught:
        await session.ensure_prefix([Message("system", "stone " * world.engine.window)])
    assert caught.value.stage == "prefix"


async def test_full_window_ends_the_answer_by_its_own_reason(world: World) -> None:
    session = await world.open()
    fill = len(world.engine.prompt([Message("user", "")]))
    size = world.engine.window - fill - 4
    word = " stone"
    per = len(world.engine.prompt([Message("user", word * 101)])) - len(world.engine.prompt([Message("user", word)]))
    count = size * 100 // per
    conversation = [Message("user", word * count)]
    room = world.engine.window - len(world.engine.prompt(conversation))
    assert room >= 0
    result = await session.turn(conversation, options=DecodeOptions(temperature=0, ignore_eos=True)).join()
    assert result.end.finish_reason == "context_full"
    assert result.receipt.resident == world.engine.window
    assert result.end.usage.output == room + 1  # the last one was sampled and has no cell
    with pytest.raises(ContextOverflowError):
        await session.decode(GREEDY).join()


async def test_cancel_in_decode_ends_with_usage_and_keeps_the_session(world: World) -> None:
    session = await world.open()
    conversation = [Message("user", world.engine.long_ask)]
    whole = await (await world.open()).turn(conversation, options=GREEDY).join()
    options = DecodeOptions(temperature=0, ignore_eos=True)
    async with session.turn(conversation, options=options) as stream:
        async for part in stream:
            if isinstance(part, TextPart):
                break
        end = await stream.cancel()
        assert (end.finish_reason, await stream.cancel()) == ("cancelled", end)
        assert end.usage.output
        assert [part async for part in stream if not isinstance(part, EndPart)] == []
    report = await session.explain()
    assert report.resident == end.receipt.resident
    result = await session.turn(conversation, options=GREEDY).join()
    assert result.text == whole.text
    kept = len(world.engine.prompt(conversation)) - world.engine.again(conversation)
    assert world.engine.warm(result.receipt) == kept


async def test_closing_a_stream_early_stops_the_engine(world: World) -> None:
    session = await world.open()
    async with session.turn(
        [Message("user", world.engine.long_ask)], options=DecodeOptions(temperature=0, ignore_eos=True)
    ) as stream:
        await anext(aiter(stream))
    await world.idle()
    assert (await session.turn([Message("user", world.engine.asks[0])], options=GREEDY).join()).text


async def test_task_cancelled_while_reading_stops_the_engine(world: World) -> None:
    session = await world.open()

    async def read() -> None:
        await session.turn(
            [Message("user", world.engine.long_ask)], options=DecodeOptions(temperature=0, ignore_eos=True)
        ).join()

    task = asyncio.ensure_future(read())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await world.idle()


async def test_slow_reader_gets_every_token_once(world: World) -> None:
    session = await world.open()
    expected = (await (await world.open()).turn([Message("user", world.engine.long_ask)], options=GREEDY).join()).text
    text = ""
    async with session.turn([Message("user", world.engine.long_ask)], options=GREEDY) as stream:
        async for part in stream:
            if isinstance(part, TextPart):
                text += part.text
                await asyncio.sleep(0.002)
    assert text == expected


async def test_many_streams_at_once_do_not_mix(world: World) -> None:
    async def talk(index: int) -> tuple[str, str]:
        session = await world.open()
        conversation = [Message("user", world.engine.asks[index % 10])]
        first = await session.turn(conversation, options=GREEDY).join()
        conversation += [first.message, Message("user", world.engine.asks[(index + 1) % 10])]
        second = await session.turn(conversation, options=GREEDY).join()
        assert world.engine.warm(second.receipt) >= first.receipt.resident
        return first.text, second.text

    alone = [await talk(index) for index in range(10)]
    assert await asyncio.gather(*(talk(index) for index in range(10))) == alone


async def test_calls_on_one_session_wait_for_each_other(world: World) -> None:
    session = await world.open()
    conversation = [Message("user", world.engine.asks[1])]
    results = await asyncio.gather(*(session.turn(conversation, options=GREEDY).join() for _ in range(4)))
    assert len({result.text for result in results}) == 1
    assert sorted(result.receipt.prefilled for result in results)[:3] == [world.engine.again(conversation)] * 3


async def test_stop_string_is_cut_off_answer_and_tape(world: World) -> None:
    session = await world.open()
    whole = (await (await world.open()).turn([Message("user", world.engine.long_ask)], options=GREEDY).join()).text
    stop = whole[20:24]
    cut = whole.index(stop)
    conversation = [Message("user", world.engine.long_ask)]
    result = await session.turn(conversation, options=DecodeOptions(temperature=0, stop=(stop, "never"))).join()
    assert (result.text, result.end.finish_reason, result.end.stop) == (whole[:cut], "stop", stop)
    # A model that cannot forget the tokens of the stop string has lost the answer with them.
    answer = world.engine.again(conversation) + len(world.engine.tokenize(result.text))
    conversation += [result.message, Message("user", world.engine.asks[0])]
    after = await session.turn(conversation, options=GREEDY).join()
    assert after.receipt.dropped == (0 if world.engine.shares else answer)


async def test_fork_shares_the_past_and_nothing_after_it(world: World) -> None:
    parent = await world.open()
    conversation = [Message("user", world.engine.asks[1])]
    first = await parent.turn(conversation, options=GREEDY).join()
    conversation.append(first.message)
    children = [await parent.fork(world.fresh_name()) for _ in range(2)]
    branches = [[*conversation, Message("user", ask)] for ask in world.engine.asks[2:4]]
    texts: list[str] = []
    for child, branch in zip(children, branches, strict=True):
        result = await child.turn(branch, options=GREEDY).join()
        assert world.engine.warm(result.receipt) >= first.receipt.resident
        texts.append(result.text)
    assert (await parent.explain()).resident == first.receipt.resident
    own = await parent.turn([*conversation, Message("user", world.engine.asks[4])], options=GREEDY).join()
    assert world.engine.warm(own.receipt) >= first.receipt.resident
    for branch, text in zip(branches, texts, strict=True):
        await world.service.unload()
        cold = await (await world.open()).turn(branch, options=GREEDY).join()
        assert cold.receipt.reused == 0
        assert cold.text == text


async def test_fork_onto_itself_is_an_error(world: World) -> None:
    session = await world.open()
    with pytest.raises(InvalidRequestError, match="itself"):
        await session.fork(session.handle.name)


async def test_snapshot_comes_back(world: World) -> None:
    session = await world.open()
    conversation = [Message("user", world.engine.asks[1])]
    first = await session.turn(conversation, options=GREEDY).join()
    saved = await session.snapshot()
    assert saved.tokens == first.receipt.resident
    conversation += [first.message, Message("user", world.engine.asks[2])]
    second = await session.turn(conversation, options=GREEDY).join()
    status = await session.restore(saved.id)
    assert status.receipt.restored == status.receipt.resident == first.receipt.resident
    again = await session.turn(conversation, options=GREEDY).join()
    assert again.text == second.text
    assert world.engine.warm(again.receipt) >= first.receipt.resident
    other = await world.open()
    await other.restore(saved.id)
    theirs = await other.turn(conversation, options=GREEDY).join()
    assert theirs.text == second.text
    assert world.engine.warm(theirs.receipt) >= first.receipt.resident


async def test_snapshot_of_another_kind_of_kv_is_refused_by_field(world: World) -> None:
    session = await world.open()
    await session.turn([Message("user", world.engine.asks[1])], options=GREEDY).join()
    saved = await session.snapshot()
    other = await world.open(kv_type=world.engine.other_kv)
    before = await other.turn([Message("user", world.engine.asks[1])], options=GREEDY).join()
    with pytest.raises(ManifestMismatchError) as caught:
        await other.restore(saved.id)
    assert caught.value.field == "kv_type"
    assert (await other.explain()).resident == before.receipt.resident


async def test_damaged_snapshot_is_refused_and_changes_nothing(world: World) -> None:
    session = await world.open()
    first = await session.turn([Message("user", world.engine.asks[1])], options=GREEDY).join()
    saved = await session.snapshot()
    path = world.node.config.data_root / "snapshots" / f"{saved.id}.snap"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ManifestMismatchError) as caught:
        await session.restore(saved.id)
    assert caught.value.field == "checksum"
    assert (await session.explain()).resident == first.receipt.resident


@pytest.mark.parametrize("id_", ["", "x", "../../etc/passwd", "A" * 64, "0" * 63 + "\n"])
async def test_snapshot_ids_are_not_paths(world: World, id_: str) -> None:
    with pytest.raises(InvalidRequestError):
        await (await world.open()).restore(id_)


async def test_unknown_snapshot(world: World) -> None:
    with pytest.raises(SnapshotNotFoundError) as caught:
        await (await world.open()).restore("0" * 64)
    assert caught.value.id == "0" * 64


async def test_closed_handle_refuses_and_the_session_stays(world: World) -> None:
    name = world.fresh_name()
    session = await world.open(name)
    first = await session.turn([Message("user", world.engine.asks[0])], options=GREEDY).join()
    await session.close()
    await session.close()
    with pytest.raises(SessionClosedError):
        await session.explain()
    with pytest.raises(SessionClosedError):
        await session.turn([Message("user", "x")]).join()
    assert (await (await world.open(name)).explain()).resident == first.receipt.resident


async def test_explain_answers_while_an_answer_runs(world: World) -> None:
    session = await world.open()
    options = DecodeOptions(temperature=0, ignore_eos=True)
    async with session.turn([Message("user", world.engine.long_ask)], options=options) as stream:
        await anext(aiter(stream))
        report = await session.explain()
        assert report.resident > 0
        assert report.manifest is not None
        assert (await world.service.status()).active == 1
        infos = {info.name: info for info in await world.service.sessions()}
        assert infos[session.handle.name].active


async def test_seeds_repeat_and_are_reported(world: World) -> None:
    options = DecodeOptions(temperature=1.5, seed=7, max_tokens=40, top_k=0, min_p=0)
    session = await world.open()
    question = [Message("user", world.engine.long_ask)]
    one, two = [await session.turn(question, options=options).join() for _ in range(2)]
    assert (one.text, one.end.seed) == (two.text, 7)
    drawn = await session.turn(question, options=DecodeOptions(max_tokens=1)).join()
    assert drawn.end.seed is not None
    greedy = await session.turn(question, options=DecodeOptions(max_tokens=1, temperature=0)).join()
    assert greedy.end.seed is None


async def test_penalties_take_part(world: World) -> None:
    session = await world.open()
    question = [Message("user", world.engine.long_ask)]
    options = DecodeOptions(temperature=0, max_tokens=60, repeat_penalty=1.3, frequency_penalty=0.5, presence_penalty=1)
    result = await session.turn(question, options=options).join()
    plain = await session.turn(question, options=DecodeOptions(temperature=0, max_tokens=60)).join()
    if world.engine.name in ("llama", "openvino"):
        assert result.text != plain.text
    else:
        assert result.text == plain.text


async def test_thinking_comes_before_the_answer(world: World) -> None:
    session = await world.open()
    async with session.turn([Message("user", world.engine.asks[0])], think="high", options=GREEDY) as stream:
        kinds = [type(part) for part in [part async for part in stream]]
    assert ThinkingPart in kinds
    assert kinds.index(ThinkingPart) < kinds.index(TextPart)
    off = await session.turn([Message("user", world.engine.asks[0])], think="off", options=GREEDY).join()
    assert (off.message.thinking, off.end.usage.reasoning) == ("", 0)


async def test_unknown_thinking_level_is_refused(world: World) -> None:
    session = await world.open()
    with pytest.raises(InvalidRequestError, match="thinking level"):
        await session.turn([Message("user", "x")], think="very").join()


async def test_unload_is_said_by_the_next_receipt(world: World) -> None:
    session = await world.open()
    conversation = [Message("user", world.engine.asks[1])]
    first = await session.turn(conversation, options=GREEDY).join()
    status = await world.service.unload()
    assert (status.state, status.engine) == ("empty", None)
    result = await session.turn(conversation, options=GREEDY).join()
    assert result.receipt.rebound
    assert result.receipt.stop is not None
    assert (result.receipt.stop.reason, result.receipt.reused) == ("unloaded", 0)
    assert result.receipt.dropped == first.receipt.resident
    assert session.handle.generation == result.receipt.generation
    assert not (await session.turn(conversation, options=GREEDY).join()).receipt.rebound


async def test_load_and_unload_meant_for_an_earlier_generation_are_refused(world: World) -> None:
    known = (await world.service.load(world.engine.ref)).generation
    await world.service.unload(generation=known)
    now = (await world.service.load(world.engine.ref, generation=known)).generation
    assert now == known + 1
    for call in (world.service.unload(generation=known), world.service.load(world.engine.ref, generation=known)):
        with pytest.raises(StaleGenerationError) as caught:
            await call
        assert (caught.value.generation, caught.value.current) == (known, now)
    assert (await world.service.status()).engine is not None


async def test_describe_does_not_load(world: World) -> None:
    await world.service.unload()
    description = await world.service.describe(world.engine.ref)
    assert description.plan.fits
    assert description.plan.context == world.engine.window
    assert not description.resident
    assert (await world.service.status()).engine is None
    await world.service.load(world.engine.ref)
    assert (await world.service.describe(world.engine.ref)).resident


async def test_context_beyond_the_model_is_refused_with_arithmetic(world: World) -> None:
    with pytest.raises(ModeldError) as caught:
        await world.open(context=10_000_000)
    assert caught.value.code == "does_not_fit"
    assert caught.value.details["max_context"] == world.engine.window


async def test_tiny_is_always_listed(world: World) -> None:
    listed = await world.service.models()
    assert listed[0].name == "tiny"
    assert listed[0].bundled


async def test_model_that_is_not_there(world: World) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        await world.service.open_session("nowhere")
    assert caught.value.name == "nowhere"
    with pytest.raises(ModelNotFoundError):
        await world.service.describe(ModelRef(path="/nowhere/model.gguf"))


async def test_digest_that_differs(world: World) -> None:
    with pytest.raises(DigestMismatchError) as caught:
        await world.service.open_session(ModelRef("tiny", digest="0" * 64))
    assert caught.value.expected == "0" * 64
    assert len(caught.value.actual) == 64


async def test_backend_that_the_node_does_not_serve(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "serves_openvino", lambda: False)
    with pytest.raises(BackendMismatchError) as caught:
        await world.service.open_session(ModelRef("tiny", type="openvino"))
    assert caught.value.wanted == "openvino"
    assert "llama" in caught.value.served


async def test_file_of_a_backend_that_the_node_does_not_serve(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "serves_openvino", lambda: False)
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    for path in (tmp_path, tmp_path / "openvino_model.xml"):
        for type_ in ("", "llama"):
            with pytest.raises(BackendMismatchError) as caught:
                await world.service.open_session(ModelRef(type=type_, path=str(path)))
            assert caught.value.wanted == "openvino"


async def test_a_model_of_another_type_than_the_one_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "serves_openvino", lambda: True)
    for path, type_, actual in ((TINY_IR, "llama", "openvino"), (TINY_F16, "openvino", "llama")):
        with pytest.raises(BackendMismatchError) as caught:
            await world.service.open_session(ModelRef(type=type_, path=str(path)))
        assert actual in caught.value.message


async def test_bad_values_are_refused_before_anything_happens(world: World) -> None:
    with pytest.raises(InvalidRequestError):
        DecodeOptions(temperature=-1)
    with pytest.raises(InvalidRequestError):
        SessionConfig(name="")
    with pytest.raises(InvalidRequestError):
        ModelRef()
