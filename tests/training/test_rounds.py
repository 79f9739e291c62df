"""Epochs in rounds: every cut once without weights, shares with them, the same from any place on; files and Shar."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_cuts import make_cut
from lhotse import CutSet
from toy_runs import read_cuts

from tokenverse_pp.base.config import DataConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.dataset import PASS, draw_id
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.samplers import Rounds, SamplerState, TrainSampler, load_cuts, open_rounds, open_source


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


@pytest.mark.filterwarnings("ignore:You are using")
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
