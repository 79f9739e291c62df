"""Samplers and rounds: every cut once or by weight, the same again from any place, on any number of ranks."""

import gzip
import multiprocessing
import os
import signal
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_cuts import make_cut
from lhotse import CutSet, Recording, RecordingSet
from toy_runs import read_cuts, toy_parts

from tokenverse_pp.base.config import DataConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.batching import paired_limits
from tokenverse_pp.data.dataset import PASS, draw_id
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.data.manifests import row_bytes
from tokenverse_pp.data.samplers import (
    CutSource,
    Rounds,
    SamplerState,
    TrainSampler,
    load_cuts,
    open_rounds,
    open_source,
    train_batches,
)
from tokenverse_pp.models.encoders.base import make_frames_of
from tokenverse_pp.training.steps import dump_batches

pytestmark = pytest.mark.filterwarnings("ignore:You are using", "ignore:We have exceeded")


class InMemory(CutSource):
    """Cuts that no file holds."""

    def __init__(self, cuts, name="memory"):
        super().__init__(name)
        self.cuts = list(cuts)

    def count_cuts(self):
        return len(self.cuts)

    def open_at(self, place):
        return iter(self.cuts[place:])

    def manifests(self):
        return []


def some_cuts(count, name="c"):
    return [make_cut(f"{name}{i}", [{"text": "oui"}], duration=1.0 + i % 7 / 2) for i in range(count)]


def test_blank_lines_and_a_byte_order_mark_are_no_cuts(tmp_path, monkeypatch):
    """As for `manifest validate`, with and without an index."""
    monkeypatch.setattr("tokenverse_pp.data.lines.EVERY", 2)
    monkeypatch.setattr("tokenverse_pp.data.samplers.EVERY", 2)
    lines = [row_bytes(cut.to_dict()) for cut in some_cuts(7)]
    data = b"\xef\xbb\xbf" + b"".join(lines[:3]) + b"\n  \r\n" + b"".join(lines[3:]) + b"\n"
    (tmp_path / "cuts.jsonl").write_bytes(data)
    (tmp_path / "cuts.jsonl.gz").write_bytes(gzip.compress(data))
    for name, indexed in (("cuts.jsonl", False), ("cuts.jsonl.gz", False), ("cuts.jsonl", True)):
        if indexed:
            open_source(str(tmp_path / name)).write_index()
        source = open_source(str(tmp_path / name))
        assert bool(source.offsets) == indexed
        ids = [f"c{i}" for i in range(7)]
        assert source.count == 7 and [cut.id for cut in source.spread(7)] == ids
        for place in range(7):
            assert [cut.id for cut in source.open_at(place)] == ids[place:]


def sampler_of(count, config, seed=1, world=None):
    return TrainSampler(Rounds([InMemory(some_cuts(count))], config, seed), config, seed, world or DistributedContext())


def test_looks_at_the_first_cuts_and_ends_each_round():
    seen, looks = [], []
    config = DataConfig(max_cuts=3, num_buckets=2, round_cuts=8)
    rounds = Rounds([InMemory(some_cuts(16))], config, 1)
    sampler = TrainSampler(
        rounds, config, 1, DistributedContext(), lambda cut: not seen.append(cut.id), lambda _: looks.append(len(seen))
    )
    sampler.look()
    sampler.look()
    assert looks == [8] and len(list(sampler.batches(SamplerState()))) >= 6
    assert looks == [8, 16, 24]


def epoch_of(sampler, epoch):
    return [[cut.id for cut in batch] for _, batch in sampler.batches(SamplerState(epoch))]


@settings(max_examples=40)
@given(
    st.integers(1, 40), st.integers(1, 4), st.integers(1, 7), st.integers(0, 3), st.integers(1, 4), st.integers(9, 50)
)
def test_all_ranks_have_as_many_batches_and_all_cuts_between_them(count, ranks, max_cuts, epoch, buckets, round_cuts):
    config = DataConfig(max_cuts=max_cuts, num_buckets=buckets, round_cuts=round_cuts)
    batches = [epoch_of(sampler_of(count, config, 1, DistributedContext(r, ranks)), epoch) for r in range(ranks)]
    assert len({len(b) for b in batches}) == 1
    seen = Counter(cut_id.split("_dup")[0] for rank in batches for batch in rank for cut_id in batch)
    assert set(seen) == {f"c{i}" for i in range(count)}
    assert all(batch for rank in batches for batch in rank)
    # The last cuts of a round may come twice, for want of others.
    assert sum(seen.values()) - count < ranks * -(-count // round_cuts)


@pytest.mark.parametrize("buckets", [1, 3])
def test_batches_depend_on_seed_and_epoch_alone(buckets):
    config = DataConfig(max_duration=10.0, num_buckets=buckets)
    first, second = (sampler_of(50, config, 5) for _ in range(2))
    assert epoch_of(first, 1) == epoch_of(second, 1)
    assert epoch_of(first, 0) == epoch_of(second, 0) != epoch_of(second, 1)
    assert epoch_of(sampler_of(50, config, 6), 0) != epoch_of(first, 0)


def test_two_ranks_draw_every_other_batch():
    config = DataConfig(max_cuts=4, num_buckets=1)
    one = epoch_of(sampler_of(32, config), 0)
    two = [epoch_of(sampler_of(32, config, 1, DistributedContext(r, 2)), 0) for r in (0, 1)]
    assert two == [one[0::2], one[1::2]]


@pytest.mark.parametrize("buckets", [1, 2])
def test_both_limits_hold_but_for_the_last_cut(buckets):
    config = DataConfig(max_duration=9.0, max_cuts=3, num_buckets=buckets)
    cuts = {cut.id: cut for cut in some_cuts(60)}
    for batch in epoch_of(sampler_of(60, config), 0):
        assert len(batch) <= 3
        first = [cuts[i].duration for i in batch[:-1]]
        assert not first or (len(first) + 1) * max(first) <= 9.0


def token_batches(lengths, config, world):
    """The token counts of the cuts of each batch of an epoch, whose cut ``c<i>`` has ``lengths[i]`` tokens."""

    def tokens_of(cut):
        return lengths[int(cut.id.split("_dup")[0][1:])]

    rounds = Rounds([InMemory(some_cuts(len(lengths)))], config, 1)
    sampler = TrainSampler(rounds, config, 1, world, tokens_of=tokens_of)
    places = list(sampler.batches(SamplerState()))
    rest = [ids(cuts) for _, cuts in sampler.batches(places[len(places) // 2][0])]
    assert rest == [ids(cuts) for _, cuts in places[len(places) // 2 + 1 :]]  # of a resumed run
    return [(ids(cuts), [tokens_of(cut) for cut in cuts]) for _, cuts in places]


def ids(cuts):
    return [cut.id for cut in cuts]


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=40),
    st.integers(1, 60),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([7, 50]),
)
def test_no_batch_has_too_many_tokens_unless_it_is_one_cut(lengths, most, ranks, buckets, round_cuts):
    config = DataConfig(max_batch_tokens=most, max_duration=20.0, num_buckets=buckets, round_cuts=round_cuts)
    batches = [token_batches(lengths, config, DistributedContext(rank, ranks)) for rank in range(ranks)]
    assert len({len(b) for b in batches}) == 1
    for cuts, tokens in (batch for rank in batches for batch in rank):
        assert len(cuts) == 1 or len(cuts) * max(tokens) <= most
    seen = Counter(cut_id.split("_dup")[0] for rank in batches for cuts, _ in rank for cut_id in cuts)
    assert set(seen) == {f"c{i}" for i in range(len(lengths))}
    assert sum(seen.values()) - len(lengths) < ranks * -(-len(lengths) // round_cuts)


def test_loose_limit_of_tokens_changes_no_batch_and_needs_a_count():
    config = DataConfig(max_cuts=4, num_buckets=2)
    limited = DataConfig(max_cuts=4, num_buckets=2, max_batch_tokens=1000)
    found = [cuts for cuts, _ in token_batches([5] * 32, limited, DistributedContext())]
    assert found == epoch_of(sampler_of(32, config), 0)
    with pytest.raises(ValueError, match="counts the tokens"):
        epoch_of(sampler_of(32, limited), 0)


def test_tokens_of_a_cut_are_those_of_its_target_with_all_tasks(tiny_corpus):
    parts = toy_parts(tiny_corpus, data__max_batch_tokens=40)
    config, dataset = parts.config.data, parts.dataset
    cut = read_cuts(tiny_corpus)[0]
    assert dataset.count_tokens(cut) == dataset.count_tokens(cut) == len(dataset.target(cut, labelled_tasks(cut)))
    sampler = TrainSampler(open_rounds(config, 3), config, 3, DistributedContext(), tokens_of=dataset.count_tokens)
    sizes = [batch["tokens"].shape for _, batch in train_batches(sampler, dataset, config, SamplerState())]
    assert all(n == 1 or n * longest <= 40 for n, longest in sizes) and any(n > 1 for n, _ in sizes)
    assert sum(n for n, _ in sizes) == 16


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_epoch_has_the_batches_that_were_left(tiny_corpus, workers):
    parts = toy_parts(tiny_corpus, data__max_cuts=3, data__num_workers=workers, tasks__activation="subset")

    def batches(skip):
        sampler = TrainSampler(open_rounds(parts.config.data, 3), parts.config.data, 3, DistributedContext())
        found = list(train_batches(sampler, parts.dataset, parts.config.data, SamplerState(2, 0, skip)))
        assert [place for place, _ in found] == [SamplerState(2, 0, n) for n in range(skip + 1, 7)]
        return [batch for _, batch in found]

    whole, rest = batches(0), batches(4)
    assert len(whole) == 6 and len(rest) == 2
    for expected, found in zip(whole[4:], rest):
        assert found["cut_ids"] == expected["cut_ids"]
        for key in ("inputs", "active", "tokens"):
            assert torch.equal(found[key], expected[key])
    assert batches(6) == []


WEIGHTED = {
    "data__weights": "[1]",
    "data__epoch_cuts": 48,
    "data__round_cuts": 12,
    "data__max_cuts": 3,
    "tasks__activation": "subset",
}


def active_by_cut(parts, world, start):
    """[(place, [(cut id, active tasks), ..]), ..] of the rest of an epoch."""
    sampler = TrainSampler(open_rounds(parts.config.data, 3), parts.config.data, 3, world)
    return [
        (place, [(i, tuple(row)) for i, row in zip(batch["cut_ids"], batch["active"].tolist())])
        for place, batch in train_batches(sampler, parts.dataset, parts.config.data, start)
    ]


def test_each_repeat_of_a_cut_in_an_epoch_has_its_own_active_tasks(tiny_corpus, monkeypatch):
    """The same for any number of workers and ranks, and after a resume."""
    monkeypatch.setattr("tokenverse_pp.data.dataset.load_inputs", lambda *arguments, **options: torch.zeros(8))
    parts = toy_parts(tiny_corpus, **WEIGHTED)
    whole = active_by_cut(parts, DistributedContext(), SamplerState(2))
    found = [item for _, items in whole for item in items]
    assert Counter(cut_id for cut_id, _ in found) == Counter({cut.id: 3 for cut in read_cuts(tiny_corpus)})
    draws = {cut_id: {active for i, active in found if i == cut_id} for cut_id, _ in found}
    # Of 16 subsets three are the same with a chance of 1/256, and two of three with 1/6.
    assert sum(len(different) > 1 for different in draws.values()) >= 15
    # The first time is what it is without weights.
    first = parts.dataset.activation
    for cut in read_cuts(tiny_corpus):
        assert tuple(map(float, parts.tasks.mask(first(cut.custom["tasks"], cut.id, 2)))) in draws[cut.id]
    assert active_by_cut(parts, DistributedContext(), whole[9][0]) == whole[10:]
    assert active_by_cut(parts, DistributedContext(), SamplerState(3))[:4] != whole[:4]
    ranks = [
        item
        for rank in (0, 1)
        for _, items in active_by_cut(parts, DistributedContext(rank, 2), SamplerState(2))
        for item in items
    ]
    assert Counter(ranks) == Counter(found)
    parts.config.data.num_workers = 2
    assert active_by_cut(parts, DistributedContext(), SamplerState(2)) == whole


def test_pairs_keep_the_limits_of_a_batch_and_are_drawn_again_on_resume(tiny_corpus):
    options = {"tasks__activation": "subset", "tasks__paired": "true", "data__max_cuts": 5, "data__max_duration": 20}
    parts = toy_parts(tiny_corpus, **options)
    config = parts.config.data

    def batches(start):
        sampler = TrainSampler(open_rounds(config, 3), paired_limits(config), 3, DistributedContext())
        return list(train_batches(sampler, parts.dataset, config, start))

    whole = batches(SamplerState(1))
    ids = [cut_id for _, batch in whole for cut_id in batch["cut_ids"]]
    assert Counter(ids) == Counter({cut.id: 2 for cut in read_cuts(tiny_corpus)})
    assert max(len(batch["cut_ids"]) for _, batch in whole) == 4  # of five rows, as cuts come whole
    for (_, found), (_, expected) in zip(batches(whole[1][0]), whole[2:]):
        assert torch.equal(found["active"], expected["active"]) and torch.equal(found["tokens"], expected["tokens"])
    assert paired_limits(DataConfig(max_batch_tokens=7)) == DataConfig(max_duration=60.0, max_batch_tokens=3)


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
def test_workers_outlive_signals_that_ask_the_run_to_stop(tiny_corpus, monkeypatch):
    """scancel and timeout signal all processes: the step that then ends the run still needs the workers."""
    monkeypatch.setattr("tokenverse_pp.data.dataset.load_inputs", lambda *arguments, **options: torch.zeros(8))
    parts = toy_parts(tiny_corpus, data__num_workers=1, data__max_cuts=1)
    sampler = TrainSampler(open_rounds(parts.config.data, 3), parts.config.data, 3, DistributedContext())
    batches = train_batches(sampler, parts.dataset, parts.config.data, SamplerState())
    found = [next(batches)]
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker.pid, number)
    found += batches
    assert len(found) == len(read_cuts(tiny_corpus))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_cut_is_the_same_error_from_a_worker(tiny_corpus, workers):
    parts = toy_parts(tiny_corpus, data__num_workers=workers)
    cuts = read_cuts(tiny_corpus)[:4]
    cuts[1].recording.sources[0].source = "/no/such/file.flac"
    sampler = TrainSampler(Rounds([InMemory(cuts)], parts.config.data, 3), parts.config.data, 3, DistributedContext())
    with pytest.raises(UserError) as caught:
        list(train_batches(sampler, parts.dataset, parts.config.data, SamplerState()))
    message = str(caught.value)
    assert message.startswith(f"cut {cuts[1].id}: ") and "/no/such/file.flac" in message and "\n" not in message


def test_cuts_whose_targets_are_known_can_be_copied(tiny_corpus, tmp_path):
    """lhotse copies them where fewer are left than ranks, to change the speed of one in memory, to write one down."""
    parts = toy_parts(tiny_corpus)
    cuts, config, dataset = read_cuts(tiny_corpus)[:2], parts.config.data, parts.dataset
    options = {
        "wanted": lambda cut: dataset.count_tokens(cut) > 0,
        "change": lambda cut, epoch: cut.perturb_speed(0.9, affix_id=False) if epoch else cut,
    }
    ranks = [
        TrainSampler(Rounds([InMemory(cuts)], config, 3), config, 3, DistributedContext(rank, 3), **options)
        for rank in range(3)
    ]
    ids = [
        cut_id
        for rank in ranks
        for _, batch in train_batches(rank, dataset, config, SamplerState())
        for cut_id in batch["cut_ids"]
    ]
    assert Counter(cut_id.partition("_dup")[0] for cut_id in ids) == {ids[0]: 2, ids[1]: 1}
    config.num_workers = 1  # the worker has the cuts' targets, too
    ((_, batch),) = train_batches(ranks[0], dataset, config, SamplerState(1))
    assert batch["durations"][0] > 1.1 * cuts[[cut.id for cut in cuts].index(batch["cut_ids"][0])].duration
    assert dump_batches(tmp_path, 1, 0, [batch], []).is_dir()


def test_cuts_of_several_files_are_all_there(tiny_corpus):
    paths = [str(tiny_corpus / f"cuts_{split}.jsonl.gz") for split in ("dev", "test")]
    expected = sorted(cut.id for split in ("dev", "test") for cut in read_cuts(tiny_corpus, split))
    assert sorted(cut.id for cut in load_cuts(paths)) == expected
    assert [cut.id for cut in load_cuts(paths)] == [cut.id for cut in load_cuts(paths)]


def test_what_is_no_cutset_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--data\.train: expected at least one"):
        load_cuts([])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "text.jsonl").write_text("hello\n")
    (tmp_path / "binary.jsonl.gz").write_bytes(b"\x00\x01")
    RecordingSet.from_recordings([Recording("r", [], 16000, 16000, 1.0)]).to_file(tmp_path / "recordings.jsonl")
    for name in ("missing.jsonl", "empty.jsonl", "text.jsonl", "binary.jsonl.gz", "recordings.jsonl"):
        with pytest.raises(UserError) as caught:
            load_cuts([str(tmp_path / name)], "cuts")
        assert f"--cuts: {tmp_path / name}: " in str(caught.value) and "\n" not in str(caught.value)


def test_frames_are_what_the_encoder_gives(tiny_corpus):
    parts = toy_parts(tiny_corpus)
    frames_of = make_frames_of(parts.model.encoder)
    for cut in read_cuts(tiny_corpus)[:4]:
        audio = torch.from_numpy(cut.load_audio())
        with torch.no_grad():
            out, lens = parts.model.encoder(audio, torch.tensor([audio.shape[1]]))
        assert out.shape[1] == int(lens) == frames_of(cut.duration)


def corpus(folder, name, count, end="jsonl"):
    path = folder / f"{name}.{end}"
    cuts = (make_cut(f"{name}{i}", [{"text": "oui"}], duration=1.0 + i % 5) for i in range(count))
    CutSet.from_cuts(cuts).to_file(path)
    return str(path)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    return [corpus(folder, "a", 23), corpus(folder, "b", 7, "jsonl.gz"), corpus(folder, "c", 1, "json")]


def epoch_ids(rounds, epoch):
    return [[cut.id for cut in rounds.cuts(epoch, number)] for number in range(rounds.per_epoch)]


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(0, 5), st.integers(1, 3))
def test_without_weights_an_epoch_is_every_cut_once(corpora, round_cuts, epoch, files):
    rounds = open_rounds(DataConfig(train=corpora[:files], round_cuts=round_cuts), seed=1)
    drawn = epoch_ids(rounds, epoch)
    assert all(len(ids) <= round_cuts + files for ids in drawn)
    expected = [cut.id for path in corpora[:files] for cut in CutSet.from_file(path)]
    assert sorted(i for ids in drawn for i in ids) == sorted(expected)


@settings(max_examples=30)
@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=3), st.integers(20, 200), st.integers(1, 50))
def test_weights_are_shares_of_what_is_drawn_over_epochs(corpora, weights, epoch_cuts, round_cuts):
    config = DataConfig(train=corpora, weights=weights, epoch_cuts=epoch_cuts, round_cuts=round_cuts)
    rounds = open_rounds(config, seed=1)
    drawn = Counter(i for epoch in range(3) for ids in epoch_ids(rounds, epoch) for i in ids)
    for name, weight, count in zip("abc", weights, (23, 7, 1)):
        times = [drawn[f"{name}{i}"] for i in range(count)]
        assert sum(times) == pytest.approx(3 * epoch_cuts * weight / sum(weights), abs=1)
        assert max(times) - min(times) <= 1  # a corpus is read whole before any of it comes again


def draws(rounds, epoch):
    """{cut id with its mark: how often} of an epoch."""
    return Counter(draw_id(cut) for number in range(rounds.per_epoch) for cut in rounds.cuts(epoch, number))


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0.05, 20)), min_size=1, max_size=4),
    st.integers(1, 120),
    st.integers(1, 50),
    st.integers(1, 50),
    st.integers(0, 3),
)
def test_each_time_a_cut_comes_in_an_epoch_is_another_draw(corpora, files, epoch_cuts, round_cuts, other, epoch):
    """Also where a file is listed twice; and whatever the rounds."""
    train, weights = [corpora[number] for number, _ in files], [weight for _, weight in files]
    config = DataConfig(train=train, weights=weights, epoch_cuts=epoch_cuts, round_cuts=round_cuts)
    found = draws(open_rounds(config, seed=1), epoch)
    assert set(found.values()) <= {1}
    config.round_cuts = other
    assert draws(open_rounds(config, seed=2), epoch) == found


def test_without_weights_a_file_is_drawn_as_ever(corpora):
    for epoch in (0, 1):
        assert set(draws(open_rounds(DataConfig(train=corpora[:1], round_cuts=9), 1), epoch)) == {
            f"a{i}" for i in range(23)
        }
    # With them too, but for what comes again.
    rounds = open_rounds(DataConfig(train=corpora[:1], weights=[1], epoch_cuts=33), 1)
    assert sum("\n" in name for name in draws(rounds, 0)) == sum("\n" in name for name in draws(rounds, 1)) == 10
    # The manifest's cuts stay what they are.
    assert not any(PASS in (cut.custom or {}) for cut in rounds.sources[0].read(0, 23))


def test_rounds_can_be_read_in_any_order_and_again(corpora):
    config = DataConfig(train=corpora, weights=[1, 2, 1], round_cuts=9)
    whole = {n: ids for n, ids in enumerate(epoch_ids(open_rounds(config, 3), 1))}
    rounds = open_rounds(config, 3)
    for number in (3, 0, 0, 2, 1):
        assert [cut.id for cut in rounds.cuts(1, number)] == whole[number]
    assert whole != {n: ids for n, ids in enumerate(epoch_ids(open_rounds(config, 4), 1))}


@pytest.mark.parametrize("place", [SamplerState(1, 0, 2), SamplerState(1, 2, 0), SamplerState(1, 2, 3)])
def test_epoch_goes_on_from_any_place(corpora, place):
    config = DataConfig(train=corpora, round_cuts=12, max_cuts=2, num_buckets=2)

    def batches(start):
        sampler = TrainSampler(open_rounds(config, 3), config, 3, DistributedContext())
        return [(after, [cut.id for cut in cuts]) for after, cuts in sampler.batches(start)]

    whole = batches(SamplerState(1))
    assert batches(place) == [(after, ids) for after, ids in whole if after > place]
    assert {after.round for after, _ in whole} == {0, 1, 2}


@pytest.fixture(scope="module")
def shar(tiny_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shar")
    cuts = CutSet.from_cuts(read_cuts(tiny_corpus)[:7])
    cuts.to_shar(folder, fields={"recording": "wav"}, shard_size=3, warn_unused_fields=False)
    return folder


def test_shar_folder_is_a_corpus_with_its_audio(tiny_corpus, shar):
    expected = read_cuts(tiny_corpus)[:7]
    source = open_source(str(shar))
    assert source.count == 7 and len(source.manifests()) == 3
    found = list(source.read(5, 9))
    assert [cut.id for cut in found] == [expected[i].id for i in (5, 6, 0, 1)]
    assert np.abs(found[0].load_audio() - expected[5].load_audio()).max() < 1e-4
    assert [cut.id for cut in load_cuts([str(shar)])] == [cut.id for cut in expected]


def test_fingerprint_follows_the_manifest(tmp_path):
    path = corpus(tmp_path, "a", 3)
    first = open_source(path).fingerprint()
    assert first == open_source(path).fingerprint() and first["path"] == path
    corpus(tmp_path, "a", 4)
    assert open_source(path).fingerprint()["sha256"] != first["sha256"]


def test_last_line_without_its_newline_counts(tmp_path):
    path = tmp_path / "a.jsonl"
    corpus(tmp_path, "a", 3)
    path.write_text(path.read_text().rstrip("\n"))
    assert open_source(str(path)).count == 3 == len(list(open_source(str(path)).read(0, 3)))


def test_folder_that_is_no_shar_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--data\.train: .*Shar"):
        open_source(str(tmp_path))
    with pytest.raises(UserError, match=r"--data\.train: expected at least one"):
        open_rounds(DataConfig(), 1)


def test_shares_are_exact_however_long_the_run(corpora):
    rounds = Rounds([open_source(corpora[0]), open_source(corpora[1])], DataConfig(weights=[0.1, 0.2]), 1)
    total = sum(stop - start for start, stop in rounds.ranges(10**9, 0))
    assert abs(total - rounds.epoch_cuts) <= 1
