"""The hand-offs between two threads: bounded, ordered, ended or cancelled; and of the newest alone."""

from __future__ import annotations

import threading
import time

import pytest

from dped_live.channel import Cancelled, Channel, Latest


def test_items_come_in_order_and_then_the_end() -> None:
    channel: Channel[int] = Channel(3)

    def produce() -> None:
        for number in range(100):
            channel.put(number)
        channel.end()

    thread = threading.Thread(target=produce)
    thread.start()
    assert list(channel) == list(range(100))
    thread.join(5)
    assert not thread.is_alive()


def test_put_waits_while_the_channel_is_full() -> None:
    channel: Channel[int] = Channel(2)
    put: list[int] = []

    def produce() -> None:
        for number in range(5):
            channel.put(number)
            put.append(number)
        channel.end()

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    time.sleep(0.1)
    assert put == [0, 1]
    assert list(channel) == [0, 1, 2, 3, 4]
    thread.join(5)
    assert put == [0, 1, 2, 3, 4]


def test_what_waits_at_the_end_is_still_delivered() -> None:
    channel: Channel[str] = Channel(2)
    channel.put("a")
    channel.put("b")
    channel.end()
    assert list(channel) == ["a", "b"]


def test_cancel_frees_a_blocked_writer_and_a_blocked_reader() -> None:
    full: Channel[int] = Channel(1)
    full.put(0)
    empty: Channel[int] = Channel(1)
    outcomes: list[str] = []

    def write() -> None:
        with pytest.raises(Cancelled):
            full.put(1)
        outcomes.append("writer")

    def read() -> None:
        with pytest.raises(Cancelled):
            next(iter(empty))
        outcomes.append("reader")

    threads = [threading.Thread(target=work, daemon=True) for work in (write, read)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    full.cancel()
    empty.cancel()
    for thread in threads:
        thread.join(5)
    assert sorted(outcomes) == ["reader", "writer"]


def test_after_cancel_nothing_that_waited_is_delivered() -> None:
    channel: Channel[int] = Channel(2)
    channel.put(1)
    channel.cancel()
    with pytest.raises(Cancelled):
        next(iter(channel))
    with pytest.raises(Cancelled):
        channel.put(2)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Channel(0)
    channel: Channel[int] = Channel(1)
    channel.end()
    with pytest.raises(ValueError, match="after end"):
        channel.put(1)


def test_of_the_latest_the_oldest_is_dropped_and_counted() -> None:
    latest: Latest[int] = Latest(2)
    for number in range(5):
        latest.put(number)
    assert (len(latest), latest.dropped) == (2, 3)
    assert [latest.take(0), latest.take(0), latest.take(0.01)] == [3, 4, None]
    assert latest.dropped == 3


def test_who_waits_for_the_latest_gets_it_at_once() -> None:
    latest: Latest[int] = Latest()
    threading.Timer(0.05, latest.put, [7]).start()
    begin = time.monotonic()
    assert latest.take(30) == 7
    assert time.monotonic() - begin < 5


def test_cancelling_the_latest_unblocks_both_sides() -> None:
    latest: Latest[int] = Latest()
    threading.Timer(0.05, latest.cancel).start()
    with pytest.raises(Cancelled):
        latest.take(30)
    with pytest.raises(Cancelled):
        latest.put(1)
    with pytest.raises(ValueError, match="at least one"):
        Latest(0)
