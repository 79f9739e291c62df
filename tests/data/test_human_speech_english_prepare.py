"""The whole preparation of the English games on miniature packages."""

import shutil
from collections import Counter, defaultdict

import pytest
from click.testing import CliRunner
from corpus import packages, queen, sky
from corpus.clips import Clip
from corpus.english import BAD_PAIRS, compose_queen, prepare_english, read_ids, read_other_texts, split_english
from corpus.split import near_duplicates
from game_archives import cutaway, dialogue, hum, jas, mp3, queen_archive, sky_archive, sky_files, speech
from labelled_cuts import make_cut
from lhotse import CutSet
from mini_packages import sentence
from scripts import ROOT, build_package, load_script

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.labels import check_cut

if shutil.which("dpkg-deb") is None:
    pytest.skip("dpkg-deb is not installed", allow_module_level=True)

script = load_script(ROOT / "recipes" / "human_speech" / "prepare_english.py", "prepare_english_script")
PEOPLE = ("ANN", "BOB", "CLEO", "DAN", "EVE", "FAY", "GUS", "HAL")
TASKS = {"queen": {("asr", "scd", "endp", "lid"), ("asr", "scd", "lid")}, "sky": {("asr", "lid")}}


def text(seed):
    return sentence(seed).capitalize() + "."


def queen_files():
    files = jas({1: "Ann"}, [sentence(f"remark{n}") for n in range(4)], {})
    sounds = {}
    for key, person in enumerate(PEOPLE, start=10):
        player = {0: text(f"{person}0"), 6: text(f"{person}6"), 7: f"{text(f'{person}7')}*01Yes."}
        answers = {1: text(f"{person}1"), 6: text(f"{person}6p"), 7: f"{sentence(f'{person}7p')}, and..."}
        files[f"{person}1.DOG"] = dialogue(key, [[(1, 0), (6, 0), (7, -1)]], player, answers)
        for name in ("SSSSJ1", "0001P1", "0006J1", "0006P1", "0007J1", "0007J2", "0007P1"):
            sounds[f"{key}{name}.SB"] = 0.9
    files["C5A.CUT"] = cutaway([(1, 5, text("scene1")), (0, 5, text("scene2")), (-2, 5, text("scene3"))])
    sounds.update({f"C5A__0{n}1.SB": 1.1 for n in (1, 2, 3)})
    sounds.update({f"JOE{n:04d}1.SB": 1.0 for n in range(41, 45)})
    files.update({name: mp3(length, 200 + 2 * n) for n, (name, length) in enumerate(sounds.items())})
    return files


@pytest.fixture(scope="module")
def packages_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("debs")
    spoken = {n: speech(hum(1.2, 150 + n)) for n in range(0, 320, 8)}
    lines = ["Menu" if n % 8 else text(f"sky{n}") for n in range(320)]
    archives = {
        "queen": [(queen.DATA, queen_archive(queen_files()))],
        "sky": list(zip((sky.DATA / "sky.dnr", sky.DATA / "sky.dsk"), sky_archive(sky_files({0: lines}, spoken)))),
    }
    for corpus, name in packages.ENGLISH_PACKAGES.items():
        root = tmp_path_factory.mktemp(corpus) / "root"
        doc = root / f"usr/share/doc/{name}/copyright"
        for path, data in [(doc.relative_to(root), b"License: test"), *archives[corpus]]:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
        build_package(root, folder, name)
    (folder / "none.txt").write_text("# the recipe's own list names recordings of the real games\n")
    return folder


@pytest.fixture(scope="module")
def prepared(packages_dir, tmp_path_factory):
    said = []
    folder = tmp_path_factory.mktemp("out")
    manifests = prepare_english(
        folder, packages_dir, bad_pairs=packages_dir / "none.txt", jobs=1, seed=4, say=said.append
    )
    return folder, {name: list(CutSet.from_file(file)) for name, file in manifests.items()}, said


def clips_of(cuts):
    return [clip for cut in cuts for supervision in cut.supervisions for clip in supervision.custom["clips"]]


def test_every_set_has_both_corpora_and_is_valid(prepared):
    _, cuts, _ = prepared
    for split in ("train", "dev", "test"):
        assert {cut.custom["corpus"] for cut in cuts[split]} == {"queen", "sky"}
        for cut in cuts[split]:
            assert check_cut(cut) == [] and cut.duration <= 20
            assert tuple(cut.custom["tasks"]) in TASKS[cut.custom["corpus"]]
            assert cut.recording.sampling_rate == 16000 and cut.supervisions[0].language == "en"
    for corpus in TASKS:
        assert {c.id for c in cuts[f"test_{corpus}"]} == {c.id for c in cuts["test"] if c.custom["corpus"] == corpus}


def test_turns_are_those_of_the_game(prepared):
    _, cuts, _ = prepared
    many = [cut for cut in cuts["train"] if cut.custom["corpus"] == "queen" and len(cut.supervisions) > 1]
    assert any(len({s.speaker for s in cut.supervisions}) == 2 for cut in many)
    order = ["SSSSJ1", "0001P1", "0006J1", "0006P1", "0007J1", "0007J2", "0007P1"]
    for cut in many:
        names = [s.custom["clips"][0].split("-")[-1].upper() for s in cut.supervisions]
        speakers = {s.speaker for s in cut.supervisions}
        if "queen-joe" in speakers and len(speakers) == 2 and not names[0].startswith("C5A"):
            assert len({name[:2] for name in names}) == 1
            places = [order.index(name[2:]) for name in names]
            assert places == sorted(places)
    # The voice of nobody on the screen is beside no other.
    alone = [cut for split in ("train", "dev", "test") for cut in cuts[split] if "queen-en-c5a__031" in clips_of([cut])]
    assert alone and all(len(cut.supervisions) == 1 for cut in alone)


def test_an_example_with_an_unknown_end_is_not_labelled_for_ends(prepared):
    _, cuts, _ = prepared
    for cut in cuts["train"]:
        remark = any(clip.startswith("queen-en-joe") for clip in clips_of([cut]))
        assert ("endp" in cut.custom["tasks"]) == (cut.custom["corpus"] == "queen" and not remark)
    ends = {s.text: s.custom["endpoint"] for c in cuts["train"] for s in c.supervisions if "endpoint" in s.custom}
    assert {ends[words] for words in ends if words.endswith(" and")} == {False} and ends["yes"] is True


def test_each_training_line_is_in_two_cuts_and_each_test_line_in_one(prepared):
    _, cuts, _ = prepared
    assert set(Counter(clips_of(cuts["train"])).values()) == {2}
    assert set(Counter(clips_of(cuts["dev"] + cuts["test"])).values()) == {1}


def test_no_sentence_is_in_two_sets(prepared):
    _, cuts, _ = prepared
    texts = {s: sorted({t.text for c in cuts[s] for t in c.supervisions if " " in t.text}) for s in ("train", "test")}
    both = texts["train"] + texts["test"]
    assert not [(i, j) for i, j in near_duplicates(both) if i < len(texts["train"]) <= j]


def test_sentences_of_other_sets_beside_it_are_left_out(prepared, packages_dir, tmp_path):
    _, cuts, _ = prepared
    seen = next(s.text for c in cuts["test_sky"] for s in c.supervisions)
    same = next(s.text for c in cuts["train"] for s in c.supervisions if c.custom["corpus"] == "sky")
    for split, texts in (("train", [seen, same, "yes"]), ("dev", ["de eerste zin"]), ("test", ["de tweede zin"])):
        turns = [{"text": words, "language": "en", "custom": {"clips": ["one"]}} for words in texts]
        made = [make_cut(f"{split}-{n}", [turn]) for n, turn in enumerate(turns)]
        CutSet.from_cuts(made).to_file(tmp_path / f"cuts_{split}.jsonl.gz")
    assert ("en", "yes") not in read_other_texts(tmp_path)
    said = []
    again = prepare_english(
        tmp_path / "out",
        packages_dir,
        beside=tmp_path,
        bad_pairs=packages_dir / "none.txt",
        jobs=1,
        seed=4,
        say=said.append,
    )
    found = {name: {s.text for c in CutSet.from_file(file) for s in c.supervisions} for name, file in again.items()}
    assert seen not in found["test"] and same in found["train"]
    assert "left out, as a near-duplicate is in another set of the other corpora: 1 clips" in said


def test_bad_pairs_are_left_out_and_counted(prepared, packages_dir, tmp_path):
    _, cuts, _ = prepared
    bad = clips_of(cuts["test_queen"])[0]
    (tmp_path / "bad.txt").write_text(f"# heard\n{bad}  # by two\n\nnobody\n")
    assert read_ids(tmp_path / "bad.txt") == [bad, "nobody"]
    said = []
    made = prepare_english(
        tmp_path / "o", packages_dir, bad_pairs=tmp_path / "bad.txt", jobs=1, seed=4, say=said.append
    )
    for split in ("train", "dev", "test"):  # nothing else moves
        assert set(clips_of(CutSet.from_file(made[split]))) == set(clips_of(cuts[split])) - {bad}
    assert "queen: left out, the recording was heard not to hold its text: 1" in said
    with pytest.raises(UserError, match="no such file"):
        read_ids(tmp_path / "none.txt")


def test_the_recipes_own_list_holds_ids():
    ids = read_ids(BAD_PAIRS)
    assert ids == sorted(set(ids)) and all(name.startswith(("queen-en-", "sky-en-")) for name in ids)


def test_report_names_licences_and_what_was_left_out(prepared):
    folder, _, said = prepared
    report = "\n".join(said)
    assert "Beneath-a-Steel-Sky-License" in report and "GPL" not in report and "hours: train" in report
    assert "sky: 40 recordings with a text" in report
    assert len(list((folder / "licences").glob("*.txt"))) == 2 and not (folder / "work").exists()


def test_second_run_does_nothing_and_jobs_change_nothing(prepared, packages_dir, tmp_path):
    folder, cuts, _ = prepared
    said = []
    prepare_english(folder, packages_dir, bad_pairs=packages_dir / "none.txt", jobs=1, seed=4, say=said.append)
    assert "already prepared" in said[-1]
    same = prepare_english(
        tmp_path, packages_dir, bad_pairs=packages_dir / "none.txt", jobs=2, seed=4, say=lambda line: None
    )
    assert [c.supervisions for c in CutSet.from_file(same["train"])] == [c.supervisions for c in cuts["train"]]


def test_command_reports_what_is_missing(packages_dir, tmp_path):
    shutil.copytree(packages_dir, tmp_path / "p")
    next((tmp_path / "p").glob("beneath-a-steel-sky_*.deb")).unlink()
    arguments = ["--output-dir", str(tmp_path / "o"), "--packages-dir", str(tmp_path / "p")]
    done = CliRunner().invoke(script.main, arguments)
    assert isinstance(done.exception, UserError) and "beneath-a-steel-sky" in str(done.exception)
    with pytest.raises(UserError, match="--jobs"):
        prepare_english(tmp_path / "o", packages_dir, jobs=0)


def test_check_lists_what_is_not_heard(packages_dir, tmp_path, monkeypatch):
    check = load_script(ROOT / "recipes" / "human_speech" / "check_english.py", "check_english_script")
    monkeypatch.setattr(check, "whisper_folder", lambda folder: folder)
    monkeypatch.setattr(check, "Listener", lambda folder, compute_type: lambda samples: "bzz")
    done = CliRunner().invoke(check.main, ["--work", str(tmp_path), "--packages-dir", str(packages_dir)])
    assert done.exit_code == 0, done.output
    assert "sky: 40 of 40 recordings are bad" in done.output
    found = read_ids(tmp_path / "bad.txt")
    assert found == sorted(found) and len(found) == 103 and (tmp_path / "heard.jsonl").is_file()


def clip(name, text, speaker="queen-joe", group="g"):
    return Clip(name, "queen", "en", speaker, f"{name}.mp3", text, name, group, closed=" " not in text, endpoint=True)


def test_lone_words_follow_their_dialogue():
    clips = [clip(f"{g}{n}", sentence(f"{g}{n}") if n else "yes", group=f"g{g}") for g in range(12) for n in range(4)]
    splits = split_english(clips, {}, 1, lambda line: None)
    by_group = defaultdict(set)
    for c in clips:
        by_group[c.group].add(splits[c.id])
    assert all(len(found) == 1 for found in by_group.values()) and len(set(splits.values())) > 1


def test_lines_that_stand_alone_are_joined_by_speaker_only():
    clips = {
        n: clip(n, sentence(n), speaker) for n, speaker in zip("abcd", ("queen-x", "queen-joe", "queen-x", "queen-y"))
    }
    scenes = [queen.Scene(f"s{n}", {n: c}, [[n]]) for n, c in clips.items()]
    examples = compose_queen(scenes, "train", clips, dict.fromkeys(clips, 0.4), 0, 1)
    assert sorted(sorted(t.clips[0].id for t in e.turns) for e in examples) == [["a", "c"], ["b"], ["d"]]
