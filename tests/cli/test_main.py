import json
import logging

import click
import numpy as np
import pytest
import soundfile
from command_lines import assert_refused, run, run_ok
from labelled_cuts import make_cut
from lhotse import CutSet, Recording

import tokenverse_pp
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.cli.groups import Group, quieten, report_errors


@pytest.fixture
def manifest(tmp_path):
    """A manifest of one cut with audio, and the hypotheses of it."""
    audio = tmp_path / "a.wav"
    soundfile.write(audio, np.zeros(24000, dtype=np.float32), 16000)
    cut = make_cut("c", [{"text": "oui non", "language": "fr"}], ["asr", "lid"])
    cut.recording = Recording.from_file(audio)
    path = tmp_path / "cuts.jsonl.gz"
    CutSet.from_cuts([cut]).to_file(path)
    (tmp_path / "hyps.jsonl").write_text(json.dumps({"id": "c", "text": "[FR] oui"}) + "\n")
    return path


def test_version_help_and_what_is_unknown():
    assert tokenverse_pp.__version__ in run("--version").output
    assert "score" in run("--help").output and "librispeech" in run("manifest", "prepare", "-h").output
    assert run("sing").exit_code == run("score", "--loud").exit_code == 2


def test_score_writes_and_prints(manifest, tmp_path):
    output = tmp_path / "out" / "scores.json"
    result = run_ok("score", "--ref", manifest, "--hyp", tmp_path / "hyps.jsonl", "--output", output)
    scores = json.loads(output.read_text())
    assert scores["wer"]["all"]["wer"] == 0.5 and scores["lid"]["accuracy"] == 1
    assert "50.0" in result.output and "accuracy 100.0 %" in result.output
    assert [file.name for file in output.parent.iterdir()] == ["scores.json"]
    piped = run("score", "--cuts", manifest, "--hyps", tmp_path / "hyps.jsonl")  # the names of the other commands
    assert piped.exit_code == 0 and piped.stdout == result.stdout


def test_cuts_without_labels_count_in_no_score(manifest, tmp_path):
    """As in decode.py and reports."""
    files = ("--cuts", tmp_path / "both.jsonl", "--hyps", tmp_path / "both.hyps.jsonl")
    [labelled], unknown = CutSet.from_file(manifest), make_cut("u", [{"text": "oui"}], ["asr"])
    unknown.custom.pop("tasks")
    CutSet.from_cuts([labelled, unknown]).to_file(files[1])
    files[3].write_text((tmp_path / "hyps.jsonl").read_text() + json.dumps({"id": "u", "text": "non"}) + "\n")
    result = run("score", *files)
    assert result.exit_code == 0 and "50.0" in result.stdout
    CutSet.from_cuts([unknown]).to_file(files[1])
    files[3].write_text(json.dumps({"id": "u", "text": "non"}) + "\n")
    assert_refused(run("score", *files), str(files[1]), "nothing to score")


def test_score_with_bad_input_writes_nothing(manifest, tmp_path):
    hyps, output = tmp_path / "hyps.jsonl", tmp_path / "scores.json"
    for content, ref, target, said in (
        ('{"id": "c", "text": "a"}\n{"id"\n', manifest, output, [str(hyps), "line 2"]),
        ('{"id": "other", "text": "a"}\n', manifest, output, ["without a hypothesis: c"]),
        ('{"id": "c", "text": "a"}\n', tmp_path / "no.jsonl", output, ["no.jsonl"]),
        ('{"id": "c", "text": "a"}\n', manifest, manifest / "scores.json", [str(manifest)]),
    ):
        hyps.write_text(content)
        assert_refused(run("score", "--ref", ref, "--hyp", hyps, "--output", target), *said)
    assert not output.exists()


def test_validate(manifest, tmp_path):
    assert run("manifest", "validate", manifest, "--audio").output == f"{manifest}: valid\n"
    bad = make_cut("bad", [{"text": 3, "language": 7}], ["asr", "lid"])
    path = tmp_path / "bad.jsonl"
    CutSet.from_cuts([bad]).to_file(path)
    result = run("manifest", "validate", manifest, path)
    assert_refused(result, str(path), "cut bad", "field 'text'", "(and 1 more)")
    assert result.stdout == f"{manifest}: valid\n"
    result = run("manifest", "validate", "--all", path)
    assert result.exit_code == 2 and result.stderr.count("\n") == 2
    (tmp_path / "a.wav").unlink()
    assert run("manifest", "validate", manifest).exit_code == 0
    assert_refused(run("manifest", "validate", "--audio", manifest), "cut c", "a.wav: no such file")


def test_stats(manifest, tmp_path):
    path = tmp_path / "stats.json"
    result = run("manifest", "stats", manifest, "--json", path)
    assert result.exit_code == 0 and "fr" in result.output
    assert json.loads(path.read_text())["languages"]["fr"]["tasks"]["lid"]["labelled"]["cuts"] == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("bug"), None),
        (UserError("cut c: no"), "cut c: no"),
        (FileNotFoundError(2, "No such file or directory", "x.flac"), "x.flac: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (UnicodeEncodeError("charmap", "да", 0, 2, "no such character"), "has no '\\u0434\\u0430': set PYTHONUTF8=1"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), None),
    ],
)
def test_errors_the_user_can_mend_are_a_line_and_others_keep_their_traceback(error, said):
    @click.group(cls=Group)
    def group():
        pass

    @group.command()
    def fail():
        raise error

    result = run("fail", group=group)
    if said is None:
        assert result.exception is error
    else:
        assert_refused(result, said)


def test_messages_of_the_package_go_to_stderr_while_a_script_runs(capsys):
    log = logging.getLogger("tokenverse_pp.somewhere")
    with report_errors():
        log.info("a message \x1b[2J")
        quieten()
        log.info("another rank's message")
        log.warning("a warning")
    log.info("afterwards")
    assert capsys.readouterr().err == "a message \\x1b[2J\na warning\n"
