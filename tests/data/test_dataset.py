"""Batches: active tasks and their tokens, activation, what is left out, and bad audio."""

import itertools
import pickle
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from labelled_cuts import make_cut
from lhotse import CutSet, MultiCut, Recording
from lhotse.cut import MixedCut
from toy_runs import read_cuts, toy_parts

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.dataset import (
    PASS,
    Activation,
    TransducerDataset,
    Usable,
    draw_id,
    load_inputs,
    marked,
)
from tokenverse_pp.data.tokenizer import UNK_ID, Tokenizer, train_tokenizer
from tokenverse_pp.tasks import build_tasks, parse, transcript

TASKS = build_tasks(["asr", "scd", "endp", "ner", "lid"], {"lid": {"languages": ["fr", "nl"]}})
TURNS = [
    {"text": "bonjour amélie", "speaker": "a", "language": "fr", "endpoint": True,
     "entities": [{"start": 8, "end": 14, "type": "PER"}]},
    {"text": "oui", "speaker": "b", "language": "fr", "endpoint": False, "entities": []},
]  # fmt: skip
SUBSETS = [names for n in range(5) for names in itertools.combinations(TASKS.names[1:], n)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([turn["text"] for turn in TURNS], TASKS, 24)


@pytest.fixture(scope="module")
def dataset(tokenizer):
    return TransducerDataset(TASKS, tokenizer, Activation())


@pytest.mark.parametrize("active", SUBSETS, ids=",".join)
def test_target_holds_the_tokens_of_the_active_tasks_only(dataset, active):
    cut = make_cut("c", TURNS, TASKS.names)
    text = dataset.tokenizer.decode(dataset.target(cut, ["asr", *active]).tolist())
    tokens = {"scd": ["[SCD]"], "endp": ["[ENDP]"], "ner": ["[NE]", "[/NE]"], "lid": ["[FR]"]}
    expected = [token for name in active for token in tokens[name]]
    assert sorted(word for word in text.split() if word.startswith("[")) == sorted(expected)
    assert parse(text, TASKS).text == "bonjour amélie oui"


def test_missing_label_is_not_an_empty_label(dataset):
    turns = [{"text": "oui", "speaker": "a", "language": "fr", "endpoint": False, "entities": []}]
    labelled = make_cut("labelled", turns, ["asr", "endp"])
    missing = make_cut("missing", [{"text": "oui"}], ["asr"])
    # The same text, but only one of them teaches that there is no endpoint.
    assert dataset.target(labelled, ["asr", "endp"]).tolist() == dataset.target(missing, ["asr"]).tolist()
    names = [dataset.activation(cut.custom["tasks"], cut.id, 0) for cut in (labelled, missing)]
    assert [TASKS.mask(n) for n in names] == [[True, False, True, False, False], [True, False, False, False, False]]


def test_batch_has_the_shapes_it_says(tiny_corpus):
    parts = toy_parts(tiny_corpus)
    cuts = read_cuts(tiny_corpus)[:3]
    cuts[1].custom["tasks"] = ["asr", "lid"]
    batch = parts.dataset[CutSet.from_cuts(cuts)]
    samples = [round(cut.duration * 16000) for cut in cuts]
    assert batch["inputs"].shape == (3, max(samples)) and batch["inputs"].dtype == torch.float32
    assert batch["lens"].tolist() == samples
    assert batch["active"].tolist() == [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
    assert batch["cut_ids"] == [cut.id for cut in cuts]
    assert batch["seconds"] == pytest.approx(sum(cut.duration for cut in cuts))
    for cut, tokens, length in zip(cuts, batch["tokens"], batch["token_lens"]):
        text = parts.tokenizer.decode(tokens[:length].tolist())
        assert parse(text, parts.tasks).text == " ".join(sup.text for sup in cut.supervisions)
    assert "[SCD]" not in parts.tokenizer.decode(batch["tokens"][1].tolist())
    audio = torch.from_numpy(cuts[2].load_audio()[0])
    assert torch.equal(batch["inputs"][2, : len(audio)], audio)
    assert not batch["inputs"][2, len(audio) :].any()


NAMES = st.lists(st.sampled_from(TASKS.names[1:]), unique=True).map(lambda names: ["asr", *names])


@given(NAMES, st.text(max_size=5), st.integers(0, 50), st.integers(0, 9), st.sampled_from(["subset", "bernoulli"]))
def test_activation_depends_on_seed_epoch_and_cut_alone(names, cut_id, epoch, seed, mode):
    first, second = (Activation(mode, 0.3, seed) for _ in range(2))
    second(["asr", "ner"], "another cut", epoch)  # what came before does not matter
    torch.manual_seed(epoch)
    assert first(names, cut_id, epoch) == second(names, cut_id, epoch)
    assert set(first(names, cut_id, epoch)) <= set(names)
    assert Activation("labelled")(names, cut_id, epoch) == names
    assert TASKS.mask(first(names, cut_id, epoch))[0]  # asr, in any case


def test_activation_differs_by_epoch_cut_and_seed():
    def draws(seed=0, epoch=None, cut=None):
        choose = Activation("subset", seed=seed)
        return [choose(TASKS.names, cut or f"c{i}", i if epoch is None else epoch) for i in range(30)]

    assert len(set(map(tuple, draws(epoch=3)))) > 5 and len(set(map(tuple, draws(cut="c")))) > 5
    assert draws(seed=0) != draws(seed=1)


def test_subset_is_uniform_and_bernoulli_has_its_share():
    names = ["asr", "scd", "endp", "ner"]
    found = Counter()
    for i in range(4000):
        found[tuple(n for n in Activation("subset", seed=1)(names, f"c{i}", 2) if n != "asr")] += 1
    # 8 subsets of probability 1/8: 500 each, standard deviation 21.
    assert len(found) == 8 and all(abs(count - 500) < 105 for count in found.values()), found
    choose = Activation("bernoulli", 0.2, seed=1)
    active = sum("ner" in choose(names, f"c{i}", 0) for i in range(4000))
    assert abs(active - 800) < 127  # five standard deviations


@given(NAMES, st.text(max_size=5), st.integers(0, 9), st.sampled_from(["labelled", "subset", "bernoulli"]))
def test_pairs_are_complementary(names, cut_id, epoch, mode):
    one, two = (Activation(mode, 0.8, 3, paired) for paired in (False, True))
    first, second = two.sets(names, cut_id, epoch)
    assert [first] == one.sets(names, cut_id, epoch) == [one(names, cut_id, epoch)]
    assert set(first) | set(second) == set(names) and set(first) & set(second) <= {"asr"} <= set(second)
    for task, *both in zip(TASKS.names, TASKS.mask(first), TASKS.mask(second)):
        assert both == [True, True] if task == "asr" else sum(both) == (task in names)


def test_paired_batch_has_each_cut_twice(tiny_corpus):
    one, two = (toy_parts(tiny_corpus, tasks__activation="subset", tasks__paired=paired) for paired in (False, True))
    cuts = read_cuts(tiny_corpus)[:3]
    cuts[1].custom["tasks"] = ["asr"]
    single, batch = (parts.dataset[CutSet.from_cuts(cuts)] for parts in (one, two))
    assert batch["cut_ids"] == [cut.id for cut in cuts for _ in range(2)]
    assert batch["seconds"] == pytest.approx(2 * single["seconds"]) and len(batch["durations"]) == 6
    for key in ("inputs", "lens"):
        assert torch.equal(batch[key][::2], single[key]) and torch.equal(batch[key][1::2], single[key])
    assert torch.equal(batch["active"][::2], single["active"])
    labelled = torch.tensor([[1.0] * 5, [1.0, 0, 0, 0, 0], [1.0] * 5])
    assert torch.equal(batch["active"][::2] + batch["active"][1::2], labelled + torch.tensor([1.0, 0, 0, 0, 0]))
    for row in range(6):
        names = [name for name, is_active in zip(two.tasks.names, batch["active"][row]) if is_active]
        target = two.dataset.target(cuts[row // 2], names)
        assert batch["tokens"][row, : batch["token_lens"][row]].tolist() == target.tolist()


def test_marks_of_passes_are_kept_in_custom_fields():
    cut = make_cut("c", TURNS[1:], TASKS.names, duration=2.0)
    assert marked(cut, 0, 0) is cut and draw_id(cut) == "c"
    ids = [draw_id(marked(cut, file, passes)) for file in range(3) for passes in range(12)]
    assert len(set(ids)) == len(ids)
    second = marked(cut, 0, 1)
    assert PASS not in cut.custom and second.custom[PASS] == "0.1" and second.custom["tasks"] == cut.custom["tasks"]
    assert PASS not in marked(second, 0, 0).custom  # a mark in a manifest (of bad batches) is not taken over
    cut.recording = Recording("r", [], 16000, 32000, 2.0)
    padded = cut.pad(duration=3.0)
    assert isinstance(padded, MixedCut) and draw_id(marked(padded, 1, 2)) == f"{padded.id}\n1.2"
    assert draw_id(padded) == padded.id


def test_cuts_that_name_no_corpus_are_counted_by_their_file(tokenizer):
    named, other = (make_cut(name, TURNS[1:], TASKS.names, duration=2.0) for name in "ab")
    named.custom["corpus"] = "mine"
    files = TransducerDataset(TASKS, tokenizer, Activation(), files=["calls", "sentences"])
    found = [files.corpus_of(marked(cut, file, 3)) for cut in (named, other) for file in (0, 1)]
    assert found == ["mine", "mine", "calls", "sentences"]
    assert files.corpus_of(marked(other, 0, 0)) == "calls"
    assert TransducerDataset(TASKS, tokenizer, Activation()).corpus_of(marked(other, 1, 0)) == "-"


def test_repeats_draw_their_own_chunks_too(tokenizer, monkeypatch):
    monkeypatch.setattr("tokenverse_pp.data.dataset.load_inputs", lambda *arguments, **options: torch.zeros(8))
    asked = []
    dataset = TransducerDataset(TASKS, tokenizer, Activation(), chunks=lambda ids, epoch: asked.append(ids))
    cut = make_cut("c", TURNS[1:], TASKS.names, duration=2.0)
    for passes in range(2):
        dataset[CutSet.from_cuts([marked(cut, 0, passes)])]
    assert asked == [["c"], ["c\n0.1"]]


def usable(dataset, frames=lambda seconds: round(seconds * 10)):
    lines = []
    return Usable(dataset, frames, 1.0, 20.0, lines.append), lines


def test_too_long_targets_are_named_once(dataset):
    wanted, lines = usable(dataset)
    cut = make_cut("crowded", TURNS, TASKS.names, duration=3.0)
    tokens = len(dataset.target(cut, TASKS.names))
    assert tokens > 12
    for seconds, fits in ((tokens / 10, True), ((tokens - 1) / 10, False)):
        cut.duration = seconds
        assert wanted(cut) is fits
        assert wanted(cut) is fits
    (line,) = lines
    assert "crowded" in line and f"{tokens} tokens" in line and f"{tokens - 1} encoder frames" in line
    # Without the task tokens it would have had room.
    cut.custom["tasks"] = ["asr"]
    assert wanted(cut)


def test_target_is_tokenised_once(dataset, monkeypatch):
    """The filter's token ids are the dataset's, also in another process; other active tasks have their own."""
    wanted, _ = usable(dataset, lambda seconds: 99)
    cut = make_cut("c", TURNS, TASKS.names, duration=3.0)
    tasks = list(TASKS.names)
    every, some = dataset.target(cut, tasks), dataset.target(cut, ["asr"])
    encoded, encode = [], Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: encoded.append(text) or encode(self, text))
    assert wanted(cut) and len(encoded) == 1
    kept, (sent,) = pickle.loads(pickle.dumps((dataset.kept, CutSet.from_cuts([cut]))))
    assert kept.get(sent) is None  # they are sent beside the cuts
    dataset.kept.put(sent, dataset.kept.get(cut))
    for found in (cut, sent):
        assert torch.equal(dataset.target(found, tasks), every)
    assert len(encoded) == 1
    assert torch.equal(dataset.target(sent, ["asr"]), some) and len(encoded) == 2
    other = TransducerDataset(TASKS, dataset.tokenizer, Activation())
    assert torch.equal(other.target(cut, tasks), every) and len(encoded) == 3
    assert cut.to_dict() == make_cut("c", TURNS, TASKS.names, duration=3.0).to_dict()
    assert wanted(cut) and dataset.kept.get(cut)
    number = id(cut)
    del cut, found, sent
    assert number not in dataset.kept._of  # it is not kept longer than its cut


def test_turns_of_a_cut_are_computed_once(dataset, monkeypatch):
    made, find = [], transcript._find_turns
    monkeypatch.setattr(transcript, "_find_turns", lambda cut: made.append(cut.id) or find(cut))
    dataset.target(make_cut("c", TURNS, TASKS.names, duration=3.0), TASKS.names)
    assert made == ["c"]


def test_cuts_of_odd_length_are_named(dataset):
    wanted, lines = usable(dataset)
    assert not wanted(make_cut("short", TURNS[1:], duration=0.5))
    assert not wanted(make_cut("long", TURNS[1:], duration=30.0))
    assert [line.split()[1] for line in lines] == ["short", "long"]
    assert not wanted(make_cut("odd", [{"text": "ñ"}], duration=0.5)) and wanted.unknown.describe() == ""
    with pytest.raises(UserError, match=r"cut bare: field 'custom\.tasks'"):
        wanted(make_cut("bare", TURNS[1:], tasks=None, duration=2.0))


def with_audio(tmp_path, rate=16000, channels=1):
    """A cut of a second of silence."""
    soundfile.write(tmp_path / "a.wav", np.zeros((rate, channels)), rate)
    cut = make_cut("c", [{"text": "oui"}], duration=1.0)
    cut.recording = Recording.from_file(tmp_path / "a.wav")
    return cut


def refused(cut, *said, **options):
    with pytest.raises(UserError) as caught:
        load_inputs(cut, **options)
    message = str(caught.value)
    assert "cut c:" in message and "\n" not in message
    assert all(part in message for part in said), message


def test_missing_audio_other_rates_and_stereo_are_refused(tmp_path):
    cut = with_audio(tmp_path)
    (tmp_path / "a.wav").unlink()
    refused(cut, str(tmp_path / "a.wav"), "no such file")
    refused(make_cut("c", [{"text": "oui"}]), "recording")
    refused(with_audio(tmp_path, rate=8000), "16000 Hz", "8000 Hz", "a.wav")
    mono = with_audio(tmp_path, channels=2)
    stereo = MultiCut("c", 0.0, 1.0, [0, 1], supervisions=mono.supervisions, recording=mono.recording)
    refused(stereo, "one channel", "found 2", "a.wav")


def tone(rate, hertz):
    return np.sin(2 * np.pi * hertz * np.arange(rate) / rate).astype(np.float32) * 0.5


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_conversion_resamples_and_averages_channels(tmp_path, rate):
    """Expected are the same tones, made at 16 kHz."""
    soundfile.write(tmp_path / "t.wav", np.stack([tone(rate, 440), tone(rate, 700)], 1), rate, subtype="FLOAT")
    audio = load_inputs(Recording.from_file(tmp_path / "t.wav").to_cut(), convert=True)
    assert audio.shape == (16000,) and audio.dtype == torch.float32
    assert np.abs(audio.numpy() - (tone(16000, 440) + tone(16000, 700)) / 2)[300:-300].max() < 2e-3


def test_what_is_no_audio_is_refused_in_plain_words(tmp_path):
    path, cut = tmp_path / "a.wav", with_audio(tmp_path)
    for content, said in ((b"", "the file is empty"), (b"hello there\n" * 9, "not recognised")):
        path.write_bytes(content)
        for convert in (False, True):
            refused(cut, str(path), said, convert=convert)
    soundfile.write(path, np.where(np.arange(16000) == 77, np.nan, 0.1), 16000, subtype="FLOAT")
    refused(cut, str(path), "NaN", convert=True)
    assert torch.isnan(load_inputs(cut)).sum() == 1  # training skips the step
    refused(cut, "no stored features", stored_features=True)


def test_what_the_vocabulary_lacks_is_counted_and_named(dataset):
    wanted, lines = usable(dataset)
    told = []
    plain = make_cut("plain", [{"text": "oui bonjour", "language": "fr"}], ["asr", "lid"], duration=5.0)
    odd = [
        make_cut(f"odd{i}", [{"text": "oui ñandú", "language": "fr"}], ["asr", "lid"], duration=5.0) for i in range(7)
    ]
    assert wanted(plain)
    wanted.unknown.finish("data.train", told.append, 0.0)
    assert told == []
    assert all(map(wanted, [plain, *odd]))
    tokens = [len(dataset.target(cut, ["asr", "lid"])) for cut in (plain, *odd)]
    unknown = 7 * dataset.target(odd[0], ["asr", "lid"]).tolist().count(UNK_ID)
    line = wanted.unknown.describe()
    assert line.startswith(
        f"{unknown} of {sum(tokens)} target tokens ({unknown / sum(tokens):.2%}), in 7 cuts, are <unk>"
    )
    assert "lacks 'd' (U+0064), 'ñ' (U+00F1), 'ú' (U+00FA); first in odd0, odd1, odd2, odd3, odd4 and 2 more" in line
    with pytest.raises(UserError, match=r"--data\.train: .*lacks 'd'.*--data\.max_unk_share=0\.01 allows no more"):
        wanted.unknown.finish("data.train", told.append, 0.01)
    wanted.unknown.finish("data.train", told.append, 1.0)
    assert told == [f"data.train: {line}"] and lines == []
    # The next pass counts anew, and says no more of characters that are known.
    assert wanted.unknown.describe() == "" and wanted(odd[0])
    wanted.unknown.finish("data.train", told.append, 1.0)
    assert len(told) == 1
