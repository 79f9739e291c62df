"""`data.rank_parts` and the index of a manifest: each rank reads its own part of a round, from where it begins."""

import gc
import json
import os
import random
from collections import Counter
from itertools import islice

import pytest
from command_lines import run
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_cuts import make_cut
from lhotse import CutSet, MonoCut
from runs import on_ranks

from tokenverse_pp.base.config import Config, DataConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data import lines
from tokenverse_pp.data.batching import level
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.samplers import (
    AHEAD,
    READ,
    CutSource,
    LinesSource,
    Rounds,
    SamplerState,
    TrainSampler,
    open_source,
)
from tokenverse_pp.training.inputs import growth_advice

pytestmark = pytest.mark.filterwarnings("ignore:You are using", "ignore:Your 'buffer_size'")


class Lazy(CutSource):
    """Cuts that are made as they are read; counts them."""

    def __init__(self, count):
        super().__init__("lazy")
        self.total, self.made = count, 0

    def count_cuts(self):
        return self.total

    def open_at(self, place):
        for number in range(place, self.total):
            self.made += 1
            yield MonoCut(f"c{number}", 0.0, 1.0 + number * 7919 % 97 / 10, 0)


class Told(DistributedContext):
    """A rank that has been told what all ranks say."""

    def gather(self, item):
        count, counted = item
        assert self.sizes[0][self.rank] == count
        return [(size, counted) for size in self.sizes.pop(0)]


def sampler_of(count, config, world):
    return TrainSampler(Rounds([Lazy(count)], config, 1), config, 1, world)


START = SamplerState()


def epochs_of(count, config, ranks, start=START):
    """For each rank (place after a batch, cut ids) of what is left of an epoch from ``start`` on."""
    alone = [sampler_of(count, config, DistributedContext(rank, ranks)) for rank in range(ranks)]
    rounds = range(start.round, alone[0].rounds.per_epoch)
    sizes = [[sum(1 for _ in each.draw(start.epoch, number)) for each in alone] for number in rounds]
    found = []
    for rank in range(ranks):
        world = Told(rank, ranks)
        object.__setattr__(world, "sizes", list(sizes))
        batches = sampler_of(count, config, world).batches(start)
        found.append([(place, [cut.id for cut in cuts]) for place, cuts in batches])
    return found


def config_of(round_cuts, buckets=4, **options):
    return DataConfig(rank_parts=True, round_cuts=round_cuts, num_buckets=buckets, max_duration=30, **options)


@pytest.mark.parametrize("ranks, buckets", [(64, 4), (72, 1)])
def test_many_ranks_have_as_many_batches_and_each_cut_once(ranks, buckets):
    count = 9 * ranks + 7
    found = epochs_of(count, config_of(5 * ranks, buckets), ranks)
    places = {tuple(place for place, _ in batches) for batches in found}
    assert len(places) == 1  # as many batches in each round, on all ranks
    seen = Counter(cut for batches in found for _, ids in batches for cut in ids)
    assert set(seen.values()) == {1} and len(seen) == count


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(2, 5), st.integers(40, 90), st.integers(20, 90), st.booleans())
def test_resume_at_any_place_has_the_batches_that_were_left(data, ranks, count, round_cuts, shuffle):
    config = config_of(round_cuts, shuffle=shuffle, max_batch_tokens=None)
    whole = epochs_of(count, config, ranks, SamplerState(1))
    place = data.draw(st.sampled_from([place for place, _ in whole[0]]))
    for rank, left in enumerate(epochs_of(count, config, ranks, place)):
        assert left == [(after, ids) for after, ids in whole[rank] if after > place]


def test_real_exchange_between_ranks_ends_rounds_together():
    """Threads that wait for each other where ranks talk, as processes do: none hangs, none is left over."""
    ranks, config = 8, config_of(160)

    def epoch(world):
        return [place for place, _ in sampler_of(500, config, world).batches(SamplerState())]

    found = on_ranks(ranks, epoch)
    assert len(set(map(tuple, found))) == 1 and {place.round for place in found[0]} == {0, 1, 2, 3}


def test_rank_without_a_cut_is_refused_on_all():
    for rank in range(3):
        world = Told(rank, 3)
        object.__setattr__(world, "sizes", [[0, 1, 1]])
        with pytest.raises(UserError, match=r"--data\.rank_parts: rank 0 has no cut that can be used in round 0"):
            list(sampler_of(2, config_of(100), world).batches(SamplerState()))


@pytest.mark.parametrize("parts", [True, False])
def test_round_without_a_cut_that_can_be_used_is_passed_over(parts):
    config = config_of(20)
    config.rank_parts = parts
    world = DistributedContext(0, 2)
    object.__setattr__(world, "gather", lambda item: [item] * 2)
    rounds = Rounds([Lazy(60)], config, 1)
    sampler = TrainSampler(rounds, config, 1, world, lambda cut: not 20 <= int(cut.id[1:]) < 40)
    assert {place.round for place, _ in sampler.batches(SamplerState())} == {0, 2}


def test_what_any_rank_counts_is_told_to_all_after_each_round():
    """What is said and judged is that of all ranks; before, the first cuts, which all have read alike."""
    config, heard = config_of(40), {0: [], 1: []}

    def epoch(world):
        seen = []

        def counted():
            taken = (len(seen), [*seen])
            seen.clear()
            return taken

        sampler = TrainSampler(
            Rounds([Lazy(80)], config, 1),
            config,
            1,
            world,
            lambda cut: seen.append(cut.id) or True,
            heard[world.rank].append,
            counted=counted,
        )
        return list(sampler.batches(SamplerState()))

    on_ranks(2, epoch)
    assert heard[0] == heard[1]
    first, *rounds = heard[0]
    assert [count for count, _ in first] == [40] and [[n for n, _ in told] for told in rounds] == [[20, 20]] * 2
    assert sorted(cut for told in rounds for _, cuts in told for cut in cuts) == sorted(f"c{n}" for n in range(80))


@given(st.lists(st.lists(st.floats(0.5, 30), min_size=1, max_size=9), min_size=1, max_size=8), st.integers(0, 9))
def test_levelled_batches_hold_each_cut_once_in_the_same_order_of_cost(durations, more):
    batches = [
        CutSet.from_cuts(MonoCut(f"{n}.{i}", 0.0, seconds, 0) for i, seconds in enumerate(batch))
        for n, batch in enumerate(durations)
    ]
    cuts = sorted(cut.id for batch in batches for cut in batch)
    count = min(len(batches) + more, len(cuts))
    found = level(batches, count, random.Random(3))
    assert len(found) == count and sorted(cut.id for batch in found for cut in batch) == cuts
    order = list(range(count))
    random.Random(3).shuffle(order)
    costs = [
        len(batch) * max(c.duration for c in batch) * (1 + max(c.duration for c in batch) / 123) for batch in found
    ]
    assert [cost for _, cost in sorted(zip(order, costs))] == sorted(costs)


def test_part_of_fewer_cuts_than_batches_comes_twice():
    world = Told(0, 2)
    object.__setattr__(world, "sizes", [[1, 5]])
    found = [[cut.id for cut in cuts] for _, cuts in sampler_of(6, config_of(100), world).batches(SamplerState())]
    assert len(found) == 5 and {i for ids in found for i in ids} == {"c0", "c1", "c2"}


def test_one_rank_draws_as_without_parts():
    drawn = []
    for parts in (False, True):
        config = DataConfig(rank_parts=parts, round_cuts=50, num_buckets=4, max_duration=30)
        batches = sampler_of(120, config, DistributedContext()).batches(SamplerState())
        drawn.append([(place, [cut.id for cut in cuts]) for place, cuts in batches])
    assert drawn[0] == drawn[1]


@pytest.mark.slow
@pytest.mark.parametrize("count", [10_000, 100_000_000])
def test_what_a_rank_holds_and_reads_does_not_grow_with_the_corpus(count):
    """The cuts that it has made, and those that are alive, after 8 batches in the middle of the corpus."""
    config = config_of(64 * 50, buffer_size=1000)
    world = DistributedContext(63, 64)
    object.__setattr__(world, "gather", lambda item: [item] * 64)
    sampler = sampler_of(count, config, world)
    sampler.look()
    source = sampler.rounds.sources[0]
    source.made = 0
    start = SamplerState(0, sampler.rounds.per_epoch // 2)
    kept = list(islice(sampler.batches(start), 8))
    assert kept and source.made <= 2 * 51
    gc.collect()
    assert sum(isinstance(item, MonoCut) for item in gc.get_objects()) < 500


def test_next_round_is_read_a_little_with_each_batch():
    world = DistributedContext(1, 2)
    object.__setattr__(world, "gather", lambda item: [item] * 2)
    sampler = sampler_of(8000, config_of(2000), world)
    source, read = sampler.rounds.sources[0], []
    for place, _ in sampler.batches(SamplerState()):
        read.append((place.round, source.made))
    steps = [after - before for (_, before), (_, after) in zip(read, read[1:])]
    assert max(steps) <= AHEAD * READ and read[-1][0] == 3
    assert source.made == 2000 + 4 * 1000  # the first round to find the buckets, and this rank's half of each


def corpus(path, count):
    cuts = [make_cut(f"c{n}", [{"text": "oui é" * (n % 5)}], duration=1 + n % 7) for n in range(count)]
    CutSet.from_cuts(cuts).to_file(path)
    return cuts


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.data())
def test_index_finds_each_line(tmp_path_factory, count, every, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "EVERY", every)
        patch.setattr("tokenverse_pp.data.samplers.EVERY", every)
        path = tmp_path_factory.mktemp("index") / "cuts.jsonl"
        corpus(path, count)
        without = LinesSource(str(path))
        plain = without.count, without.fingerprint(), [cut.id for cut in without.spread(5)]
        without.write_index()
        source = open_source(str(path))
        assert source.index and (source.count, source.fingerprint(), [cut.id for cut in source.spread(5)]) == plain
        place = data.draw(st.integers(0, count))
        assert list(source.open_at(place)) == list(without.open_at(place))


def test_indexed_manifest_is_not_read(tmp_path):
    """A sparse file: before and behind the lines that are wanted there is nothing that could be parsed."""
    path, width, total = tmp_path / "cuts.jsonl", 1000, 5_000_000
    first, *_, last = [json.dumps(cut.to_dict()).ljust(width - 1).encode() + b"\n" for cut in corpus(path, 2)]
    with open(path, "wb") as file:
        file.write(first)
        file.truncate(width * total)
        file.seek(width * (total - 1000))
        file.write(last * 1000)
    offsets = [*range(0, width * total, width * lines.EVERY)]
    index = lines.LineIndex([path.name], [width * total], [total], offsets, "ab", [lines.sample(path)])
    lines.index_path(path).write_text(json.dumps(vars(index)))
    source = open_source(str(path))
    assert source.count == total and source.fingerprint() == {"path": str(path), "bytes": width * total, "sha256": "ab"}
    assert [cut.id for cut in source.read(total - 3, total + 1)] == ["c1", "c1", "c1", "c0"]


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz", "shar"])
def test_index_command(tmp_path, name):
    path = tmp_path / name
    cuts = corpus(tmp_path / "all.jsonl", 7)
    if name == "shar":
        path.mkdir()
        CutSet.from_cuts(cuts).to_shar(path, fields={}, shard_size=3, warn_unused_fields=False)
    else:
        CutSet.from_cuts(cuts).to_file(path)
    before = open_source(str(path)).fingerprint()
    result = run("manifest", "index", path)
    assert result.exit_code == 0 and f"{path}.index: 7 cuts" in result.stdout and before["sha256"] in result.stdout
    source = open_source(str(path))
    assert source.index and source.fingerprint() == before
    assert [cut.id for cut in source.read(4, 9)] == ["c4", "c5", "c6", "c0", "c1"]
    # A manifest that has changed since is refused, until it is indexed again.
    changed = source.manifests()[-1].stat().st_mtime_ns
    os.utime(lines.index_path(path), ns=(changed - 10**9, changed - 10**9))
    with pytest.raises(UserError, match=r"^[^:]*\.index: .* has changed since; run `tokenverse-pp manifest index"):
        open_source(str(path)).fingerprint()
    assert run("manifest", "index", path).exit_code == 0
    # A file of the same size that is moved to this place keeps its older time.
    manifest = source.manifests()[-1]
    manifest.write_bytes(manifest.read_bytes()[::-1])
    os.utime(manifest, ns=(changed - 10**9, changed - 10**9))
    with pytest.raises(UserError, match=r"^[^:]*\.index: .* has changed since; run `tokenverse-pp manifest index"):
        open_source(str(path)).fingerprint()
    manifest.write_bytes(manifest.read_bytes()[::-1])
    lines.index_path(path).write_text('{"files": ["a"]}')
    with pytest.raises(UserError, match=r"^[^:]*\.index: not an index"):
        open_source(str(path))
    assert run("manifest", "index", path).exit_code == 0 and open_source(str(path)).count == 7


@pytest.mark.parametrize("size", [1, 3 * 4096, 2**20])
def test_index_knows_a_shuffled_file_again(tmp_path, size):
    path = tmp_path / "cuts.jsonl"
    content = bytes(random.Random(1).choices(range(256), k=size))
    path.write_bytes(content)
    assert lines.sample(path) == lines.sample(path) and len(lines.sample(path)) == 16
    known = lines.sample(path), lines.sample(path, 50_000)
    for at in (0, size - 1):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert lines.sample(path) != known[0] and lines.sample(path, 50_000) != known[1]


def test_file_that_changes_while_it_is_indexed_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "cuts.jsonl"
    corpus(path, 3)
    source, feed = LinesSource(str(path)), lines.feed

    def slow(digest, file):
        size = feed(digest, file)
        with open(file, "ab") as other:
            other.write(b"{}\n")
        return size

    monkeypatch.setattr(lines, "feed", slow)
    with pytest.raises(UserError, match=r"cuts\.jsonl: has changed while it was indexed"):
        source.write_index()
    assert not lines.index_path(path).exists()


def test_shar_folder_that_is_the_working_folder(tmp_path, monkeypatch):
    """Also shards whose names have no number, and an index of one of them in the folder, which is no shard."""
    cuts = CutSet.from_cuts(corpus(tmp_path / "all.jsonl", 6))
    folder = tmp_path / "shar"
    folder.mkdir()
    cuts.to_shar(folder, fields={}, shard_size=3, warn_unused_fields=False)
    for number, shard in enumerate(sorted(folder.iterdir())):
        shard.rename(folder / f"cuts.part-{number}.jsonl.gz")
    monkeypatch.chdir(folder)
    shard = folder / "cuts.part-0.jsonl.gz"
    assert run("manifest", "index", shard).exit_code == 0 and (folder / f"{shard.name}.index").is_file()
    for indexed in (False, True):
        source = open_source(".")
        assert bool(source.index) == indexed and source.count == 6
        assert [cut.id for cut in source.read(0, 7)] == ["c0", "c1", "c2", "c3", "c4", "c5", "c0"]
        assert run("manifest", "index", ".").exit_code == 0 and (tmp_path / "shar.index").is_file()


def test_advice_is_for_runs_that_need_it(tmp_path):
    def advice(ranks, count, source=None, **data):
        config = Config(data=DataConfig(**data))
        return " ".join(growth_advice(config, ranks, Rounds([source or Lazy(count)], config.data, 1)))

    assert advice(8, 10**6) == "" == advice(64, 10**6, rank_parts=True, round_cuts=1_280_000)
    assert "--data.rank_parts true --data.round_cuts 1280000" in advice(64, 10**6)
    assert "781 cuts a rank" in advice(64, 10**6, rank_parts=True)
    assert "manifest index" in advice(1, 10**7)
    # No round is large enough: there are fewer cuts a rank.
    assert advice(64, 600_000) == "" == advice(64, 600_000, rank_parts=True)
    # What a rank gets counts, which may be less than round_cuts.
    assert "7812 cuts a rank" in advice(64, 10**6, rank_parts=True, round_cuts=999_999)
    CutSet.from_cuts(corpus(tmp_path / "all.jsonl", 1)).to_file(tmp_path / "cuts.json")
    document = open_source(str(tmp_path / "cuts.json"))
    document._count = 10**7
    assert advice(1, 0, document) == ""


def test_document_has_no_index(tmp_path):
    CutSet.from_cuts(corpus(tmp_path / "all.jsonl", 2)).to_file(tmp_path / "cuts.json")
    result = run("manifest", "index", tmp_path / "cuts.json")
    assert result.exit_code == 2 and "no lines to index" in result.stderr


def test_shar_folder_is_listed_once(tmp_path, monkeypatch):
    (tmp_path / "shar").mkdir()
    cuts = CutSet.from_cuts(corpus(tmp_path / "all.jsonl", 30))
    cuts.to_shar(tmp_path / "shar", fields={}, shard_size=1, warn_unused_fields=False)
    source = open_source(str(tmp_path / "shar"))
    monkeypatch.setattr("pathlib.Path.glob", lambda *_: pytest.fail("the folder is listed again"))
    assert len(list(source.read(0, 30))) == 30
