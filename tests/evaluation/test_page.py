"""The report in a browser: its numbers, its players, and that nothing of the user's is taken for HTML."""

import base64
import io
import json
import re

import numpy as np
import pytest
import soundfile
from browser import chromium
from click.testing import CliRunner
from jinja2 import UndefinedError
from labelled_cuts import make_cut
from lhotse import CutSet, Recording

from tokenverse_pp.cli.main import cli
from tokenverse_pp.evaluation.report import PageOptions, write_report
from tokenverse_pp.evaluation.report.tables import environment
from tokenverse_pp.evaluation.scoring import score_hypotheses

EVIL = "<script>document.title = 'taken'</script>"
ALL = ["asr", "scd", "endp", "ner", "lid"]


def timed(cut_id, said, tasks=ALL, **fields):
    """A hypothesis whose words follow each other every half second, from 0.25 s on."""
    words = [
        {"text": word, "start": 0.25 + 0.5 * i, "end": 0.6 + 0.5 * i, "confidence": 0.5 + 0.02 * i}
        for i, word in enumerate(said.split())
    ]
    tokens = [word["text"] if word["text"].startswith("[") else f"▁{word['text']}" for word in words]
    times = [word["start"] for word in words]
    return {"id": cut_id, "text": said, "tokens": tokens, "times": times, "words": words, "tasks": tasks, **fields}


def corpus(folder):
    """A conversation that lies within its file, a cut with an evil name, and one without labels -> cuts, hypotheses."""
    rng = np.random.default_rng(0)
    soundfile.write(folder / "a b.wav", 0.1 * rng.standard_normal(16000 * 8), 16000)
    recording = Recording.from_file(folder / "a b.wav")
    turns = [
        {"text": "bonjour amélie", "speaker": "a", "language": "fr", "endpoint": True, "entities": []},
        {"text": "je vous écoute", "speaker": "b", "language": "fr", "endpoint": False, "entities": []},
    ]
    talk = make_cut("talk", turns, ALL, duration=5.0, corpus="calls")
    evil = make_cut(
        EVIL, [{"text": "een twee", "language": "nl"}], ["asr", "lid"], duration=2.0, corpus='<b title="x">'
    )
    plain = make_cut("plain", [], None, duration=3.0)
    for cut, start in ((talk, 2.0), (evil, 0.0), (plain, 1.0)):
        cut.recording, cut.start = recording, start
    hyps = [
        timed(
            "talk",
            "[FR] oui bonjour [ENDP] [SCD] je vous coûte",
            language="fr",
            turns=[{"text": "bonjour", "start": 0.75, "end": 1.1}, {"text": "je vous", "start": 2.25, "end": 4.1}],
            speaker_changes=[1.75],
            endpoints=[1.25],
            entities=[{"text": "vous", "start": 2.75, "end": 3.1, "type": None}],
        ),
        timed(EVIL, "[FR] <img/src=x/onerror=alert(1)> twee", language="fr", turns=[], entities=[]),
        timed("plain", "tout va bien", language="fr"),
    ]
    return [talk, evil, plain], hyps


FAILED = [{"id": "<i>gone</i>", "files": [], "reason": "cut <i>gone</i>: /x.wav: no such file"}]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder with audio, report.html, and the scores that it shows."""
    folder = tmp_path_factory.mktemp("site & more")
    cuts, hyps = corpus(folder)
    scores = score_hypotheses(cuts, hyps)
    speed = {"audio_seconds": 10.0, "wall_seconds": 1.0, "rtf": 0.1}
    scores.update(speed={**speed, "ranks": [speed]}, options={"model": EVIL, "beam": 4})
    write_report(folder / "report.html", cuts, hyps, scores, FAILED, options=PageOptions(f"Run {EVIL}"))
    return folder, json.loads(json.dumps(scores))


@pytest.fixture(scope="module")
def page(site, tmp_path_factory):
    """The report, opened."""
    with chromium(tmp_path_factory.mktemp("profile"), "--window-size=1000,900") as driver:
        driver.get((site[0] / "report.html").as_uri())
        yield driver


def cells(page, table):
    """A table's numbers in full: row name -> column key -> value."""
    script = """return [...document.querySelectorAll(`[data-table="${arguments[0]}"] tbody tr`)].map(row => [
        row.dataset.group, [...row.querySelectorAll("[data-key]")].map(c => [c.dataset.key, +c.dataset.value])])"""
    return {name: dict(values) for name, values in page.execute_script(script, table)}


@pytest.mark.browser
def test_tables_hold_the_scores(page, site):
    _, scores = site
    assert cells(page, "wer-language") == scores["wer"]
    assert cells(page, "wer-corpus") == scores["wer_by_corpus"]
    assert scores["wer"]["all"]["wer"] == pytest.approx(4 / 7)
    shown = page.find_element("css selector", '[data-table="wer-language"] [data-group="all"] [data-key="wer"]').text
    assert shown == "57.1"
    tokens = cells(page, "tokens")
    assert {name: tokens[f"scd {name}"] for name in ("text",)} == {"text": scores["scd"]["text"]}
    assert tokens["endp time 0.5"] == scores["endp"]["time"]["0.5"]
    assert "57.1 %" in page.find_element("css selector", ".tiles").text


@pytest.mark.browser
def test_confusion_matrix_holds_the_counts(page, site):
    script = """const t = document.querySelector('[data-table="languages"]');
        const head = [...t.querySelectorAll("thead th")].slice(1).map(c => c.textContent);
        return [...t.querySelectorAll("tbody tr")].map(row => [row.dataset.group,
            [...row.querySelectorAll("td")].map((c, i) => [head[i], +c.dataset.value]).filter(c => c[1])])"""
    found = {ref: dict(counts) for ref, counts in page.execute_script(script)}
    assert found == site[1]["lid"]["confusion"] == {"fr": {"fr": 1}, "nl": {"fr": 1}}


@pytest.mark.browser
def test_nothing_of_the_users_is_html(page):
    assert page.title == f"Run {EVIL}"  # as text
    assert not page.find_elements("css selector", "main script, main img, main i:not([class])")
    assert page.find_element("css selector", f"[data-id={json.dumps(EVIL)}] h3").text == EVIL
    assert "<img/src=x/onerror=alert(1)>" in page.find_element("css selector", "#worst").text
    assert "<i>gone</i>" in page.find_element("css selector", ".refused").text


@pytest.mark.browser
def test_alignment_shows_what_is_wrong(page):
    script = """const text = (pair, side) => pair.querySelector(side).textContent;
        return [...document.querySelectorAll('[data-id="talk"] .pair')].map(pair =>
            [pair.className.replace("pair ", ""), text(pair, ".ref"), text(pair, ".hyp")])"""
    assert page.execute_script(script) == [
        ["ok token", "[FR]", "[FR]"],
        ["ins", "", "oui"],
        ["ok", "bonjour", "bonjour"],
        ["del", "amélie", ""],
        ["ok token", "[ENDP]", "[ENDP]"],
        ["ok token", "[SCD]", "[SCD]"],
        ["ok", "je", "je"],
        ["ok", "vous", "vous"],
        ["sub", "écoute", "coûte"],
    ]


@pytest.mark.browser
@pytest.mark.parametrize(
    ("place", "seconds"),
    [
        (".pair.sub", 2.0 + 3.75),
        (".lane.hyp .turn:nth-of-type(2)", 2.0 + 2.25),
        (".lane.hyp .endpoint", 2.0 + 1.25),
        (".lane.hyp .speaker-change", 2.0 + 1.75),
        (".lane.ref .turn:nth-of-type(2)", 2.0 + 1.5),
        (".lane.ref .endpoint", 2.0 + 1.0),
        (".lane.ents .entity", 2.0 + 2.75),
    ],
)
def test_pressing_a_word_or_mark_seeks_the_player(page, place, seconds):
    """The cut starts two seconds into its file."""
    audio = page.find_element("css selector", '[data-id="talk"] audio')
    page.execute_script("arguments[0].pause(); arguments[0].currentTime = 0", audio)
    script = """const done = arguments[arguments.length - 1], audio = arguments[0];
        audio.addEventListener("seeking", () => done(audio.currentTime), {once: true}); arguments[1].click();"""
    found = page.execute_async_script(script, audio, page.find_element("css selector", f'[data-id="talk"] {place}'))
    assert seconds <= found < seconds + 0.5
    page.execute_script("arguments[0].pause()", audio)


@pytest.mark.browser
def test_the_audio_plays(page, site):
    audio = page.find_element("css selector", '[data-id="talk"] audio')
    script = """const done = arguments[arguments.length - 1], audio = arguments[0];
        audio.addEventListener("error", () => done("error"));
        audio.addEventListener("playing", () => done(audio.duration));
        audio.play();"""
    assert page.execute_async_script(script, audio) == pytest.approx(8.0, abs=0.01)
    page.execute_script("arguments[0].pause()", audio)


@pytest.mark.browser
def test_time_line_lies_in_its_cut(page):
    script = """const line = document.querySelector('[data-id="talk"] .lane.hyp').getBoundingClientRect();
        const box = document.querySelector('[data-id="talk"] .lane.hyp .turn').getBoundingClientRect();
        return [(box.left - line.left) / line.width, box.width / line.width]"""
    assert page.execute_script(script) == pytest.approx([0.75 / 5, 0.35 / 5], abs=0.002)


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 400, 1000])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen(page, width, scheme):
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    background = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")


@pytest.mark.browser
def test_lists_are_ordered_and_narrowed(page):
    def choose(key, value):
        script = """const select = document.querySelector(`#worst [data-choice="${arguments[0]}"]`);
            select.value = arguments[1]; select.dispatchEvent(new Event("change", {bubbles: true}))"""
        page.execute_script(script, key, value)
        shown = page.find_elements("css selector", "#worst .utterance:not([hidden])")
        return [utterance.get_attribute("data-id") for utterance in shown]

    assert choose("order", "errors") == ["talk", EVIL]
    assert choose("order", "id") == [EVIL, "talk"]
    assert choose("language", "fr") == ["talk"]
    assert choose("language", "") == [EVIL, "talk"]


@pytest.mark.browser
def test_no_complaints_on_the_console(page):
    """The last test of this page: all that the others did is in its log."""
    assert page.get_log("browser") == []


def test_page_asks_for_nothing_from_elsewhere(site):
    html = (site[0] / "report.html").read_text(encoding="utf-8")
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", html)
    assert set(addresses) == {"data:,", "a%20b.wav"}
    assert not re.search(r"https?://|@import|url\(", html)


def test_embedded_audio_is_the_cut_alone(tmp_path):
    cuts, hyps = corpus(tmp_path)
    options = PageOptions(embed_audio=True)
    write_report(tmp_path / "out" / "report.html", cuts, hyps, score_hypotheses(cuts, hyps), options=options)
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'data-id="talk".*?data-offset="([^"]*)".*?src="data:audio/ogg;base64,([^"]*)"', html, re.S)
    ((offset, content),) = sources
    assert float(offset) == 0
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
    assert rate == 16000 and len(samples) == 5 * 16000


def test_cuts_without_references_are_listed_by_confidence(tmp_path):
    cuts = [make_cut(str(i), [], None, duration=2.0) for i in range(3)]
    hyps = [timed(str(i), " ".join("a" * n), endpoints=[]) for i, n in enumerate((3, 1, 2))]
    write_report(tmp_path / "r.html", cuts, hyps, score_hypotheses(cuts, hyps))
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Least confident utterances" in html and "<audio" not in html
    assert re.findall(r'data-id="(\d)"', html) == ["1", "2", "0"]


def test_nothing_was_decoded(tmp_path):
    scores = score_hypotheses([], [])
    write_report(tmp_path / "r.html", [make_cut("c", [{"text": "a"}])], [], scores, FAILED)
    assert "no such file" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_templates_escape_texts_and_attributes():
    template = environment().from_string('<p title="{{ title }}">{{ text }}</p>')
    assert template.render(title="\"'<>&", text='<a href="x">&') == (
        '<p title="&#34;&#39;&lt;&gt;&amp;">&lt;a href=&#34;x&#34;&gt;&amp;</p>'
    )


def test_a_value_that_a_template_lacks_is_an_error():
    with pytest.raises(UndefinedError):
        environment().from_string("{{ missing }}").render()


def test_halves_of_surrogate_pairs_can_be_written(tmp_path):
    options = PageOptions("a \ud800 b")
    write_report(tmp_path / "r.html", [], [], score_hypotheses([], []), options=options)
    assert "<h1>a ? b</h1>" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_report_command(tmp_path, site):
    cuts, hyps = corpus(tmp_path)
    cuts.append(make_cut("<i>gone</i>", [{"text": "a", "language": "fr"}], ["asr"]))
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl")
    (tmp_path / "hyps.jsonl").write_text("".join(json.dumps(hyp) + "\n" for hyp in hyps))
    (tmp_path / "scores.json").write_text(json.dumps(site[1]))
    (tmp_path / "failures.jsonl").write_text(json.dumps(FAILED[0]) + "\n")
    names = {"--hyps": "hyps.jsonl", "--cuts": "cuts.jsonl", "--output": "report.html"}
    arguments = [part for option, name in names.items() for part in (option, str(tmp_path / name))]
    done = CliRunner().invoke(cli, ["report", *arguments, "--title", f"Run {EVIL}"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "report.html").read_bytes() == (site[0] / "report.html").read_bytes()
    (tmp_path / "failures.jsonl").write_text("[]\n")
    done = CliRunner().invoke(cli, ["report", *arguments])
    assert done.exit_code == 2 and "failures.jsonl: expected an object with id and reason" in done.output
