"""The whole preparation on miniature packages."""

import shutil
from collections import defaultdict

import pytest
import soundfile
from click.testing import CliRunner
from corpus.packages import check_package, extract_package
from corpus.prepare import prepare_human_speech
from corpus.split import near_duplicates
from lhotse import CutSet
from mini_packages import write_packages
from scripts import ROOT, load_script

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.cli.main import cli
from tokenverse_pp.data.labels import check_cut

if shutil.which("dpkg-deb") is None:
    pytest.skip("dpkg-deb is not installed", allow_module_level=True)

human_speech = load_script(ROOT / "recipes" / "human_speech" / "prepare.py", "prepare_human_speech").main
LANGUAGES = {"fillets": {"nl", "cs"}, "asterisk": {"en", "es", "fr", "it", "ru"}, "tuxpaint": {"es", "fr", "ru"}}
TASKS = {"fillets": ["asr", "scd", "endp", "lid"], "asterisk": ["asr", "lid", "ner"], "tuxpaint": ["asr", "lid"]}


@pytest.fixture(scope="module")
def packages_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("debs") / "packages"
    write_packages(folder, tmp_path_factory.mktemp("roots"))
    return folder


@pytest.fixture(scope="module")
def prepared(packages_dir, tmp_path_factory):
    said = []
    folder = tmp_path_factory.mktemp("out")
    manifests = prepare_human_speech(folder, packages_dir, jobs=1, seed=7, say=said.append)
    return folder, {name: list(CutSet.from_file(file)) for name, file in manifests.items()}, said


def test_every_set_has_every_language(prepared):
    _, cuts, _ = prepared
    for split in ("train", "test"):
        found = defaultdict(set)
        for cut in cuts[split]:
            found[cut.custom["corpus"]].add(cut.supervisions[0].language)
        assert found == LANGUAGES
    for corpus in LANGUAGES:
        assert {c.id for c in cuts[f"test_{corpus}"]} == {c.id for c in cuts["test"] if c.custom["corpus"] == corpus}


def test_cuts_follow_the_label_schema(prepared):
    _, cuts, _ = prepared
    for cut in cuts["train"] + cuts["dev"] + cuts["test"]:
        tasks = cut.custom["tasks"]
        assert [task for task in tasks if task != "punct"] == TASKS[cut.custom["corpus"]]
        assert cut.start == 0 and cut.duration == cut.recording.duration <= 20.0
        assert cut.recording.sampling_rate == 16000 and 1 <= len(cut.supervisions) <= 6
        info = soundfile.info(cut.recording.sources[0].source)
        assert (info.samplerate, info.channels, info.frames) == (16000, 1, cut.recording.num_samples)
        ends = [s.end for s in cut.supervisions]
        assert all(later.start > end for later, end in zip(cut.supervisions[1:], ends))
        assert ends[-1] <= cut.duration + 1e-3
        for supervision in cut.supervisions:
            assert supervision.text == " ".join(supervision.text.split()) and supervision.speaker
            assert ("entities" in supervision.custom) == ("ner" in tasks)
            assert ("endpoint" in supervision.custom) == ("endp" in tasks)
            assert ("written" in supervision.custom) == ("punct" in tasks)
        assert not check_cut(cut)
    assert {cut.custom["corpus"] for cut in cuts["train"] if "punct" in cut.custom["tasks"]} >= {"fillets", "tuxpaint"}


def test_written_texts_come_to_manifests_without_them(prepared, packages_dir, tmp_path):
    folder, cuts, _ = prepared
    before = tmp_path / "cuts_train.jsonl.gz"
    words = ["manifest", "label", str(folder / "cuts_train.jsonl.gz"), str(before), "--drop", "punct"]
    assert CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
    assert not any("written" in s.custom for cut in CutSet.from_file(before) for s in cut.supervisions)
    written = load_script(ROOT / "recipes" / "human_speech" / "written.py", "written").main
    options = ["--output-dir", str(tmp_path / "out"), "--packages-dir", str(packages_dir)]
    run = CliRunner().invoke(written, [str(before), *options], catch_exceptions=False)
    assert run.exit_code == 0 and "labelled for punct: fillets" in run.output
    out = tmp_path / "out" / before.name
    assert [cut.to_dict() for cut in CutSet.from_file(out)] == [cut.to_dict() for cut in cuts["train"]]
    run = CliRunner().invoke(written, [str(before), *options, "--corpora", "fillets"], catch_exceptions=False)
    labelled = {cut.custom["corpus"]: "punct" in cut.custom["tasks"] for cut in CutSet.from_file(out)}
    assert labelled == {"fillets": True, "asterisk": False, "tuxpaint": False}


def test_gaps_are_in_range_and_audible(prepared):
    _, cuts, _ = prepared
    for cut in cuts["test_fillets"]:
        for before, after in zip(cut.supervisions, cut.supervisions[1:]):
            assert 0.05 - 1e-3 <= after.start - before.end <= 0.6 + 1e-3
            pause = cut.load_audio()[0, int((before.end + 0.01) * 16000) : int((after.start - 0.01) * 16000)]
            assert abs(pause).max() == 0


def test_no_sentence_or_near_duplicate_is_in_two_sets(prepared):
    _, cuts, _ = prepared
    texts = {}
    for split in ("train", "dev", "test"):
        # Phrases (several clips in one turn) and lone words are closed-class: they may occur anywhere.
        turns = (s for c in cuts[split] for s in c.supervisions if len(s.custom["clips"]) == 1)
        texts[split] = sorted({s.text for s in turns if len(s.text.split()) > 1})
    for a, b in (("train", "dev"), ("train", "test"), ("dev", "test")):
        both = texts[a] + texts[b]
        assert not [(both[i], both[j]) for i, j in near_duplicates(both) if i < len(texts[a]) <= j]


def test_each_training_line_is_in_two_cuts_and_each_test_line_in_one(prepared):
    _, cuts, _ = prepared
    for split, times in (("train", 2), ("test", 1)):
        count = defaultdict(int)
        for cut in cuts[split]:
            for supervision in cut.supervisions:
                for clip in supervision.custom["clips"]:
                    if clip.startswith(("fillets", "tuxpaint")) or "-say-" in clip:
                        count[clip] += 1
        assert count and set(count.values()) == {times}


def test_report_names_licences_and_hours(prepared):
    folder, _, said = prepared
    text = "\n".join(said)
    assert "GPL-2" in text and "CC-BY-SA-3.0" in text and "hours: train" in text
    assert len(list((folder / "licences").glob("*.txt"))) == 14
    assert not (folder / "work").exists()


def test_second_run_does_nothing(prepared, packages_dir):
    folder, _, _ = prepared
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    said = []
    prepare_human_speech(folder, packages_dir, jobs=1, seed=7, say=said.append)
    assert "already prepared" in said[-1]
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_result_does_not_depend_on_jobs_but_on_seed(prepared, packages_dir, tmp_path):
    folder, cuts, _ = prepared
    quiet = lambda line: None
    same = prepare_human_speech(tmp_path / "a", packages_dir, jobs=2, seed=7, say=quiet)
    other = prepare_human_speech(tmp_path / "b", packages_dir, jobs=1, seed=8, say=quiet)

    def described(cut_list, root):
        return [{**c.to_dict(), "recording": c.recording.num_samples, "root": str(root) in str(c)} for c in cut_list]

    again = list(CutSet.from_file(same["train"]))
    assert described(again, tmp_path / "a") == described(cuts["train"], folder)
    first, second = (c.recording.sources[0].source for c in (again[0], cuts["train"][0]))
    assert open(first, "rb").read() == open(second, "rb").read()
    assert described(CutSet.from_file(other["train"]), tmp_path / "b") != described(cuts["train"], folder)


def test_missing_package_is_named(packages_dir, tmp_path):
    shutil.copytree(packages_dir, tmp_path / "p")
    next((tmp_path / "p").glob("fillets-ng-data-nl_*.deb")).unlink()
    with pytest.raises(UserError, match="fillets-ng-data-nl"):
        prepare_human_speech(tmp_path / "o", tmp_path / "p", jobs=1)


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.98])
def test_truncated_package_is_named(packages_dir, tmp_path, keep):
    shutil.copytree(packages_dir, tmp_path / "p")
    file = next((tmp_path / "p").glob("fillets-ng-data-cs_*.deb"))
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match=file.name):
        check_package("fillets-ng-data-cs", file)
        extract_package(file, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


def test_wrong_package_is_refused(packages_dir):
    file = next(packages_dir.glob("fillets-ng-data-cs_*.deb"))
    with pytest.raises(UserError, match="expected fillets-ng-data-nl"):
        check_package("fillets-ng-data-nl", file)


def test_command_line_has_the_options_and_passes_them_on(prepared, packages_dir):
    folder, _, _ = prepared
    arguments = ["--output-dir", str(folder), "--packages-dir", str(packages_dir), "--seed", "7", "--jobs", "1"]
    result = CliRunner().invoke(human_speech, arguments)
    assert result.exit_code == 0 and "already prepared" in result.output
