"""Shards in order, resumed, and computed again where workers die: in this process, and with Ray's calls replaced."""

import contextlib
import logging
import os
import random
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.base import engine
from tokenverse_pp.base.engine import (
    AHEAD,
    LOCAL,
    TRIES,
    EngineOptions,
    Parts,
    RayEngine,
    ShardEngine,
    current_engine,
    opened,
)
from tokenverse_pp.base.errors import UserError


class Gone(Exception):
    """Of a worker that died."""


class Raised(Gone):
    """Of a function that raised, with its error."""

    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class Handle(SimpleNamespace):
    """Of an actor or a call: itself only."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


class FakeRay:
    """Ray as far as `RayEngine` uses it: calls end in any order, and workers die of some (``dies(shard) -> bool``)."""

    exceptions = SimpleNamespace(RayError=Gone, RayTaskError=Raised)

    def __init__(self, cpus=2, seed=0, dies=lambda shard: False, starts=10**6):
        self.cpus, self.random, self.dies, self.starts = cpus, random.Random(seed), dies, starts
        self.alive, self.most, self.running = 0, 0, []

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return {"CPU": float(self.cpus)}

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": float(self.cpus)}}, {"Alive": False, "Resources": {"CPU": 99.0}}]

    def remote(self, cls):
        return SimpleNamespace(options=lambda **wanted: SimpleNamespace(remote=lambda: self._actor(cls())))

    def _actor(self, worker):
        self.alive += 1
        self.most = max(self.most, self.alive)
        actor = Handle()
        actor.begin = SimpleNamespace(remote=lambda *args: self._call(actor, lambda: worker.begin(*args), None))
        actor.run = SimpleNamespace(remote=lambda shard: self._call(actor, lambda: worker.run(shard), shard))
        return actor

    def _call(self, actor, work, shard):
        assert actor not in [call.actor for call in self.running]  # one shard at a time
        self.running.append(Handle(actor=actor, work=work, shard=shard))
        return self.running[-1]

    def wait(self, calls, timeout):
        if self.starts <= 0 and all(call.shard is None for call in calls):
            self.starts = 10**6
            return [], calls
        chosen = self.random.choice(calls)
        return [chosen], [call for call in calls if call is not chosen]

    def get(self, call):
        self.running.remove(call)
        if call.shard is not None and self.dies(call.shard):
            raise Gone("the worker died")
        try:
            return call.work()
        except Exception as error:
            raise Raised(error) from error

    def kill(self, actor):
        self.alive -= 1
        self.running = [call for call in self.running if call.actor is not actor]


@contextlib.contextmanager
def ray_engine(**options):
    """An engine on `FakeRay`."""
    fake = FakeRay(**options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_import_ray", lambda address: fake)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # a worker without a GPU sets it
        yield RayEngine(EngineOptions(engine="ray")), fake


def double():
    return lambda shard: {"value": 2 * shard}


def numbered(count, drawn=None):
    for number in range(count):
        if drawn is not None:
            drawn.append(number)
        yield f"shard {number}", number


@given(
    count=st.integers(0, 40),
    cpus=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    deaths=st.lists(st.tuples(st.integers(0, 39), st.integers(1, TRIES - 1)), max_size=8),
)
def test_results_are_in_order_whoever_dies_and_few_shards_are_in_flight(count, cpus, seed, deaths):
    left = dict(deaths)

    def dies(shard):
        left[shard] = left.get(shard, 0) - 1
        return left[shard] >= 0

    drawn = []
    with ray_engine(cpus=cpus, seed=seed, dies=dies) as (cluster, fake):
        for number, result in enumerate(cluster.run(double, numbered(count, drawn))):
            assert result == {"value": 2 * number}
            assert len(drawn) - number <= AHEAD * cpus
        assert drawn == list(range(count))
        assert fake.alive == 0 and not fake.running and fake.most <= min(cpus, max(count, 0))


@pytest.mark.parametrize("kind", ["process", "ray"])
def test_what_is_in_the_parts_is_not_computed_again(tmp_path, kind):
    computed = []

    def start():
        return lambda shard: computed.append(shard) or {"value": [shard, "é\u2028"]}

    with ray_engine() as (cluster, fake):
        which = cluster if kind == "ray" else ShardEngine()
        parts = Parts(tmp_path / "parts")
        stopped = which.run(start, numbered(20), parts)
        first = [next(stopped)["value"][0] for _ in range(5)]
        stopped.close()
        parts.close()
        assert fake.alive == 0 and first == list(range(5))
        before = list(computed)
        assert 5 <= len(before) < 20
        again = list(which.run(start, numbered(20), Parts(tmp_path / "parts")))
        assert sorted(computed) == list(range(20))  # each once, of both runs
        assert [line["value"] for line in again] == [[number, "é\u2028"] for number in range(20)]
        list(which.run(lambda: pytest.fail("nothing is loaded"), numbered(20), Parts(tmp_path / "parts")))


@pytest.mark.parametrize(
    "error", [UserError("cut c3: no audio"), FileNotFoundError(2, "No such file"), ZeroDivisionError()]
)
def test_an_error_of_the_function_is_raised_and_not_tried_again(error):
    calls = []

    def start():
        def compute(shard):
            calls.append(shard)
            if shard == 3:
                raise error

        return compute

    with pytest.raises(type(error)):
        list(ShardEngine().run(start, numbered(9)))
    assert calls == [0, 1, 2, 3]
    calls.clear()
    with ray_engine() as (cluster, fake), pytest.raises((type(error), Raised)) as caught:
        list(cluster.run(start, numbered(9)))
    assert calls.count(3) == 1 and fake.alive == 0
    assert (caught.value is error) == isinstance(error, (UserError, OSError))


def test_a_shard_that_kills_every_worker_is_named(caplog):
    with ray_engine(dies=lambda shard: shard == 4) as (cluster, fake), pytest.raises(UserError) as caught:
        list(cluster.run(double, numbered(9)))
    assert f"shard 4: {TRIES} workers died of it" in str(caught.value) and fake.alive == 0
    assert [r.getMessage().partition(" (")[2][:6] for r in caplog.records] == [
        f"{n} of {TRIES}" for n in range(1, TRIES)
    ]


def test_workers_that_cannot_start_are_no_endless_loop():
    with ray_engine() as (cluster, fake):
        fake.get = lambda call: (fake.running.remove(call), (_ for _ in ()).throw(Gone("no module named x")))[1]
        with pytest.raises(UserError, match=f"{TRIES} workers in a row died when they started: no module named x"):
            list(cluster.run(double, numbered(9)))
        with pytest.raises(UserError, match="no model"):
            fake.get = FakeRay.get.__get__(fake)
            fake.running.clear()
            list(cluster.run(lambda: (_ for _ in ()).throw(UserError("no model")), numbered(2)))


def test_user_is_told_where_there_is_no_room_for_a_worker(caplog):
    with ray_engine(starts=0) as (cluster, _):
        assert [r["value"] for r in cluster.run(double, numbered(3), threads=2)] == [0, 2, 4]
    assert [r.getMessage() for r in caplog.records] == [
        "no worker could start yet: the cluster has no room for one of CPU: 2 (ray status)"
    ]


def test_a_worker_wants_no_more_than_a_machine_has(monkeypatch):
    with ray_engine(cpus=2) as (cluster, _):
        assert cluster._room(16, False) == ({"CPU": 2.0, "GPU": 0.0}, 1)  # 16 threads on one of 2 cores: slow, but done
        cluster.options = EngineOptions("ray", worker_cpus=3)
        assert cluster._room(1, False)[0]["CPU"] == 3  # a machine that has them may come
        monkeypatch.setattr(cluster, "_joined", True)
        cluster.address = LOCAL
        with pytest.raises(UserError, match="--worker-cpus: this machine has 2, got 3"):
            cluster._room(1, False)
    with ray_engine(cpus=0) as (cluster, _):
        assert cluster._room(4, False) == ({"CPU": 4.0, "GPU": 0.0}, 1)  # a head node that waits for others


@pytest.mark.parametrize(("option", "variable"), [(None, None), ("local", None), (None, "local"), ("local", "node1:1")])
def test_a_cluster_that_is_started_here_listens_on_loopback_with_a_token(monkeypatch, option, variable):
    names = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED")
    for name in (*names, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")  # so that what is set below is undone
        monkeypatch.delenv(name)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    assert RayEngine(EngineOptions("ray", option)).address == LOCAL
    assert [os.environ.get(name) for name in names] == ["0", "token", "0"]
    for name in names:
        monkeypatch.delenv(name)
    RayEngine(EngineOptions("ray", "node1:6379"))
    assert [os.environ.get(name) for name in names] == [None, None, "0"]


def test_a_cluster_that_cannot_be_joined_is_an_error_of_one_line(monkeypatch):
    with ray_engine() as (cluster, fake):
        fake.is_initialized = lambda: False
        fake.init = lambda *args, **more: (_ for _ in ()).throw(Gone("wrong token\nfor node1"))
        cluster.address = "node1:6379"
        with pytest.raises(UserError) as caught:
            list(cluster.run(double, numbered(1)))
    assert str(caught.value) == "--ray-address node1:6379: no cluster of Ray that can be joined: wrong token for node1"


def test_workers_end_before_the_engine_leaves_the_cluster():
    """Also where results were not fetched, because of an error of whoever fetched them."""
    with ray_engine() as (cluster, fake):
        results = cluster.run(double, numbered(9))
        next(results)
        assert fake.alive == 2
        cluster.close()
        assert fake.alive == 0
        fake.kill = lambda actor: pytest.fail("the cluster has been left")
        results.close()


def test_parts_of_another_run_are_deleted(tmp_path):
    for run, left in (("a", {"run"}), ("a", {"run", "x"}), ("b", {"run"})):
        parts = Parts(tmp_path)
        parts.keep_of(run)
        assert set(parts.read()) == left
        parts.append("x", {"value": 1})
        parts.close()


def test_messages_of_workers_are_logged_here(caplog):
    def start():
        return lambda shard: logging.getLogger("tokenverse_pp.data").warning("shard %d is strange", shard)

    with caplog.at_level(logging.WARNING), ray_engine(cpus=1) as (cluster, _):
        list(cluster.run(start, numbered(2)))
    logged = [record.getMessage() for record in caplog.records if record.name == "tokenverse_pp.base.engine"]
    assert logged == ["shard 0 is strange", "shard 1 is strange"]


def test_map_gives_the_same_by_all_engines():
    items = list(range(-7, 6))
    assert list(ShardEngine().map(abs, items)) == list(map(abs, items)) == list(ShardEngine().map(abs, items, 2, 4))
    with ray_engine() as (cluster, _):
        assert list(cluster.map(abs, items, 9, 4)) == list(map(abs, items))
        assert list(cluster.map(abs, [])) == []


def test_the_engine_is_the_current_one_within_its_block():
    assert not current_engine().is_cluster
    with opened(EngineOptions()) as inner:
        assert current_engine() is inner
    assert current_engine() is not inner
    for name in ("num_workers", "worker_cpus", "worker_gpus"):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')}: expected 0 or more"):
            EngineOptions(**{name: -1})
