"""The checks before the first step: shared by the ranks, the same verdict on all of them; texts for the tokenizer."""

import dataclasses
import json

import pytest
from command_lines import run, run_ok
from hypothesis import given
from hypothesis import strategies as st
from labelled_cuts import make_cut
from lhotse import CutSet
from runs import on_ranks
from toy_runs import call_ok, finish, read_cuts, start, toy_options, toy_parts

from tokenverse_pp.base.config import Config, DataConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.editing.shar import write_shar
from tokenverse_pp.data.samplers import SamplerState, open_rounds, open_source
from tokenverse_pp.data.tokenizer import Tokenizer
from tokenverse_pp.tasks import build_tasks
from tokenverse_pp.training.inputs import check_data, make_inputs

TASKS = build_tasks(["asr", "lid"], {"lid": {"languages": ["fr"]}})


def write_cuts(path, names, wrong=()):
    cuts = []
    for name in names:
        cut = make_cut(name, [{"text": "oui", "language": "fr", "speaker": "s"}], ["asr", "lid"])
        if len(cuts) in wrong:
            cut.custom["tasks"] = ["lid"]
        cuts.append(cut.to_dict())
    path.write_text("".join(json.dumps(cut) + "\n" for cut in cuts))
    return path


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_task_without_labels_is_warned_of(tmp_path, caplog, ranks):
    path, other = (str(write_cuts(tmp_path / f"{name}.jsonl", [name, f"{name}2"])) for name in "ab")
    data = DataConfig(train=[path], valid=[other, path], validate_audio=0)
    more = build_tasks(["asr", "scd", "ner", "lid"], {"lid": {"languages": ["fr"]}})
    assert on_ranks(ranks, lambda world: check_data(Config(data=data), more, world)) == [None] * ranks
    assert [record.getMessage() for record in caplog.records] == [
        "no cut of data.train is labelled for scd, ner: the model cannot learn this"
    ]
    check_data(Config(data=data), more, resumed=True)
    check_data(Config(data=data), TASKS)
    assert len(caplog.records) == 1


@given(st.integers(1, 4), st.integers(2, 12), st.integers(0, 23), st.integers(0, 23))
def test_any_number_of_ranks_finds_a_bad_cut_and_an_id_that_is_there_twice(tmp_path_factory, ranks, count, wrong, twin):
    names = [f"c{number}" for number in range(count)]
    if twin < count - 1:
        names[-1] = names[twin]
    path = write_cuts(tmp_path_factory.mktemp("cuts") / "a.jsonl", names, [wrong])
    config = Config(data=DataConfig(train=[str(path)], validate_audio=0))
    found = on_ranks(ranks, lambda world: check_data(config, TASKS, world))
    assert len(set(found)) == 1  # the same on all ranks
    if wrong < count:
        assert found[0].startswith(f"{path}: cut ") and ("custom.tasks" in found[0] or "another cut" in found[0])
    elif twin < count - 1:
        assert "another cut has it already" in found[0] or "1 cuts have the id of another one" in found[0]
    else:
        assert found[0] is None


@pytest.mark.parametrize("most", [1, 3, 100])
def test_ids_are_compared_some_at_a_time(tmp_path, monkeypatch, most):
    monkeypatch.setattr("tokenverse_pp.training.inputs.MOST_HASHES", most)
    names = [f"c{number}" for number in range(9)]
    for path, repeated in ((tmp_path / "a.jsonl", 2), (tmp_path / "b.jsonl", 0)):
        write_cuts(path, [*names, "c2", "c5"] if repeated else names)
        config = Config(data=DataConfig(train=[str(path)], validate_audio=0))
        found = on_ranks(2, lambda world, config=config: check_data(config, TASKS, world))
        assert len(set(found)) == 1 and (f": {repeated} cuts have the id" in found[0] if repeated else not found[0])


def test_resumed_run_checks_the_labels_of_other_files_only(tmp_path):
    good, bad = write_cuts(tmp_path / "good.jsonl", "ab"), write_cuts(tmp_path / "bad.jsonl", "ab", [1])
    config = Config(data=DataConfig(train=[str(bad)], valid=[str(good)], validate_audio=0))
    check_data(config, TASKS, resumed=True)
    config.training.allow_changed_data = True
    with pytest.raises(UserError, match=r"bad\.jsonl: cut b"):
        check_data(config, TASKS, resumed=True)
    config.data.valid.append(str(bad))
    config.training.allow_changed_data = False
    with pytest.raises(UserError, match=r"bad\.jsonl: cut b"):
        check_data(dataclasses.replace(config, data=DataConfig(train=[], valid=[str(bad)])), TASKS, resumed=True)


def test_shards_of_a_shar_folder_are_whole(tiny_corpus, tmp_path, toy_tasks):
    CutSet.from_cuts(read_cuts(tiny_corpus)[:6]).to_file(tmp_path / "cuts.jsonl")
    shar = tmp_path / "shar"
    write_shar(tmp_path / "cuts.jsonl", shar, 2, "wav")
    config = Config(data=DataConfig(train=[str(shar)], validate_audio=2))

    def found(ranks=2):
        [one] = set(on_ranks(ranks, lambda world: check_data(config, toy_tasks, world)))
        return one

    assert found() is None
    tar = shar / "recording.000001.tar"
    whole = tar.read_bytes()
    for content in (b"", whole[:3000], whole[: len(whole) // 1024 * 512]):
        tar.write_bytes(content)
        assert found() == f"{tar}: cut off: expected the end of a tar file"
    tar.unlink()
    assert found() == f"{shar / 'cuts.000001.jsonl.gz'}: its shard lacks the file of 'recording' that other shards have"
    for other in shar.glob("recording.*"):
        other.unlink()
    assert "its audio is not in the Shar folder" in found(1)


def test_audio_is_looked_up_for_a_sample_spread_over_the_file(tiny_corpus, tmp_path, toy_tasks):
    cuts = read_cuts(tiny_corpus)
    cuts[8].recording.sources[0].source = str(tmp_path / "gone.wav")
    path = tmp_path / "cuts.jsonl"
    CutSet.from_cuts(cuts).to_file(path)
    for most, ranks, seen in ((None, 1, True), (16, 2, True), (16, 3, True), (0, 1, False), (0, 2, False)):
        config = Config(data=DataConfig(train=[str(path)], validate_audio=most))
        found = on_ranks(ranks, lambda world, config=config: check_data(config, toy_tasks, world))
        assert len(set(found)) == 1 and (found[0] is not None) == seen
        assert not seen or ("gone.wav" in found[0] and cuts[8].id in found[0])


@pytest.mark.parametrize("most, stops", [(0.0001, True), (1.0, False)])
def test_unknown_tokens_and_cuts_left_out_of_any_rank_are_told(tiny_corpus, tmp_path, caplog, most, stops):
    """Cuts of the second round, in the part of rank 1: with data.rank_parts no other rank reads them."""
    caplog.set_level("INFO")
    cuts = read_cuts(tiny_corpus)
    for cut in cuts[13:15]:
        cut.custom["tasks"] = ["asr"]  # other labels refer to places in the text
    cuts[14].supervisions[0].text = "\u2603" + cuts[14].supervisions[0].text
    cuts[13].supervisions[0].text *= 40  # too long for its frames
    path = tmp_path / "cuts.jsonl"
    CutSet.from_cuts(cuts).to_file(path)
    options = {"data__train": [path], "data__rank_parts": "true", "data__round_cuts": 8, "data__max_unk_share": most}
    parts = toy_parts(tiny_corpus, **options)

    def epoch(world):
        rounds = open_rounds(parts.config.data, 1)
        dataset, tokenizer = parts.dataset, parts.dataset.tokenizer
        inputs = make_inputs(parts.config, world, dataset.tasks, tokenizer, parts.model.encoder, rounds, [])
        list(inputs.sampler.batches(SamplerState()))

    found = on_ranks(2, epoch)
    assert found[0] == found[1] and (found[0] is not None) == stops
    said = [record.message for record in caplog.records]
    assert sum(line.startswith(f"rank 1: cut {cuts[13].id} left out: its target") for line in said) == 1
    unknown = found[:1] if stops else [line for line in said if line.startswith("data.train: ")][:1]
    assert "(U+2603)" in unknown[0] and f"first in {cuts[14].id}" in unknown[0]


def test_cuts_are_those_that_the_encoder_takes(tiny_corpus):
    """Whisper takes 30 s; chunks are a whole number of frames."""
    parts, cuts = toy_parts(tiny_corpus, data__max_seconds=100), read_cuts(tiny_corpus)
    limit = sorted(cut.duration for cut in cuts)[5]
    parts.model.encoder.backbone.max_samples = round(limit * 16000)
    rounds = open_rounds(parts.config.data, 1)

    def held_out():
        world, encoder = DistributedContext(), parts.model.encoder
        found = make_inputs(parts.config, world, parts.tasks, parts.tokenizer, encoder, rounds, cuts).held_out
        return sorted(cut.duration for cut in found)

    assert len(held_out()) < len(cuts) and held_out()[-1] == limit
    parts.config.model.streaming.chunk_ms = [320]  # in chunks there is no limit
    assert len(held_out()) == len(cuts)
    parts.config.model.streaming.chunk_ms = [0, 320, 330]
    with pytest.raises(UserError, match=r"--model\.streaming\.chunk_ms=\[0, 320, 330\]: .*multiple of 20 ms"):
        held_out()


@pytest.mark.slow
def test_two_real_ranks_stop_with_the_same_line(tiny_corpus, tmp_path):
    cuts = read_cuts(tiny_corpus)
    cuts[3].custom["tasks"] = ["lid"]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl")
    options = toy_options(tiny_corpus, tmp_path / "exp", data__train=[tmp_path / "cuts.jsonl"])
    failure = finish(start("train.py", *options, ranks=2))
    assert failure.code != 0 and f"error: {tmp_path / 'cuts.jsonl'}: cut {cuts[3].id}" in failure.stderr
    assert not (tmp_path / "exp").exists()


@given(st.integers(1, 30), st.integers(0, 40))
def test_spread_is_even_and_the_same_for_lines_and_other_files(tmp_path_factory, count, wanted):
    folder = tmp_path_factory.mktemp("spread")
    lines = open_source(str(write_cuts(folder / "a.jsonl", [f"c{n}" for n in range(count)])))
    CutSet.from_file(folder / "a.jsonl").to_file(folder / "b.json")
    for source in (lines, open_source(str(folder / "b.json"))):
        places = [int(cut.id[1:]) for cut in source.spread(wanted)]
        assert len(places) == min(wanted, count) and places == sorted(set(places))
        for number, place in enumerate(places):
            assert number * count // len(places) <= place < (number + 1) * count // len(places)
        assert places == [int(cut.id[1:]) for cut in source.spread(wanted)]


def test_texts_are_drawn_by_the_weights(tmp_path):
    large, small = (
        write_cuts(tmp_path / "l.jsonl", [f"l{n}" for n in range(90)]),
        write_cuts(tmp_path / "s.jsonl", "st"),
    )
    config = DataConfig(train=[str(large), str(small)], weights=[0.5, 0.5])
    drawn = [cut.id for cut in open_rounds(config, 0).sample(20)]
    assert len(set(drawn[:10])) == 10 and [name[0] for name in drawn] == ["l"] * 10 + ["s", "t"] * 5
    config = DataConfig(train=[str(large), str(small)])
    assert [cut.id[0] for cut in open_rounds(config, 0).sample(92)] == ["l"] * 90 + ["s", "t"]


def test_tokenizer_command_makes_that_of_the_run(tiny_corpus, tmp_path, train_script):
    options = toy_options(tiny_corpus, tmp_path / "exp", tokenizer__sentences=12, training__max_steps=1)
    output = tmp_path / "folder" / "bpe.model"
    result = run_ok("tokenizer", "--output", output, *options)
    assert result.stdout == f"50 tokens: {output}\n"
    call_ok(train_script.main, *options)
    assert (tmp_path / "exp" / "model" / "tokenizer.model").read_bytes() == output.read_bytes()
    # Another tokenizer than that of all texts, and a given one is refused.
    assert run("tokenizer", "--output", tmp_path / "all", *toy_options(tiny_corpus, "exp")).exit_code == 0
    assert (tmp_path / "all").read_bytes() != output.read_bytes()
    again = run("tokenizer", "--output", output, *options, "--tokenizer.model", output)
    assert again.exit_code == 2 and "there is a tokenizer already" in again.stderr
    assert Tokenizer.load(output).vocab_size == 50
