"""Ranks that look after each other: a failure, a death and an end are told apart, without processes."""

import threading
import time

import pytest
import torch.distributed as dist

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.training import failures as peers
from tokenverse_pp.training.failures import StopRequest, Watch, looking_after


@pytest.fixture
def ranks(monkeypatch):
    """Makes the watches of some ranks that share a store -> (watches, {rank: what it left with}, event)."""
    monkeypatch.setattr(peers, "BEAT", 0.01)
    monkeypatch.setattr(peers, "URGENT", 0.3)
    made, left, someone = [], {}, threading.Event()

    def make(size, patience=0.5):
        store = dist.HashStore()

        def leaving(rank):
            def leave(message):
                left[rank] = message
                someone.set()

            return leave

        made.extend(Watch(store, rank, size, patience, leaving(rank)) for rank in range(size))
        for watch in made:
            watch.start()
        return made, left, someone

    yield make
    for watch in made:
        watch.ended.set()


def wait_for(left, count):
    until = time.monotonic() + 20
    while len(left) < count and time.monotonic() < until:
        threading.Event().wait(0.01)
    return left


def test_message_of_the_first_rank_that_fails_reaches_all(ranks):
    watches, left, _ = ranks(3)
    with pytest.raises(UserError, match="cut c7"), looking_after(watches[1]):
        raise UserError("cut c7: no such file")
    expected = "stops: rank 1 failed: cut c7: no such file"
    assert wait_for(left, 2) == {0: f"rank 0 {expected}", 2: f"rank 2 {expected}"}


def test_rank_that_died_is_named_by_all(ranks):
    watches, left, _ = ranks(3)
    watches[2].ended.set()  # as a killed process: no word, no beat
    for rank, message in wait_for(left, 2).items():  # rank 0, which watches all, tells the others
        assert message.startswith(f"rank {rank} stops: rank 2 has given no sign of life")
    assert set(left) == {0, 1}


def test_rank_that_is_done_is_not_missed(ranks):
    watches, left, someone = ranks(2, patience=0.2)
    with looking_after(watches[1]):
        pass
    assert not someone.wait(1.0) and not left


def test_error_of_its_own_is_announced_after_looking_round(ranks):
    watches, left, _ = ranks(2, patience=30)
    with pytest.raises(ZeroDivisionError), looking_after(watches[0]):
        1 / 0  # noqa: B018
    assert wait_for(left, 1) == {1: "rank 1 stops: rank 0 failed: ZeroDivisionError: division by zero"}


def test_store_that_does_not_answer_ends_the_rank(ranks, monkeypatch):
    watches, left, _ = ranks(2)

    def gone(*arguments):
        raise RuntimeError("Connection reset by peer")

    for watch in watches:
        monkeypatch.setattr(watch, "_look", gone)
    assert all("holds the store" in message for message in wait_for(left, 2).values()) and len(left) == 2


def test_store_that_neither_answers_nor_fails_ends_the_rank(ranks, monkeypatch):
    """As the store of a machine whose power has failed: requests to it wait."""
    watches, left, _ = ranks(2, patience=0.3)
    waiting = threading.Event()
    monkeypatch.setattr(watches[1], "_look", lambda *arguments: waiting.wait(20) and None)
    assert "holds the store" in wait_for(left, 2)[1]  # rank 0 misses its sign of life, sooner or later
    waiting.set()


def test_work_after_an_agreed_stop_may_take_its_time(ranks, monkeypatch):
    """A signal makes all ranks look at each other at once; once they have agreed to stop, they are patient again."""
    watches, left, someone = ranks(2, patience=30)
    stops = [StopRequest(watch) for watch in watches]
    silent = threading.Event()
    for stop, watch in zip(stops, watches):
        stop._on_signal(15, None)
        stop.agreed()
        monkeypatch.setattr(watch, "_look", lambda *arguments: silent.wait(20) and None)  # a checkpoint is written
    assert not someone.wait(1.0) and not left
    silent.set()


def test_time_in_which_no_thread_ran_does_not_count(ranks, monkeypatch):
    _, left, someone = ranks(1, patience=0.3)
    clock, lost = time.monotonic, [0.0]
    monkeypatch.setattr(peers.time, "monotonic", lambda: clock() + lost[0])
    for _ in range(5):
        lost[0] += 10.0
        assert not someone.wait(0.1)
    assert not left


def test_alone_nothing_is_watched():
    with pytest.raises(UserError), looking_after(None):
        raise UserError("x")
