"""The page in a browser: a fake microphone or a file in, a transcript with turns, entities and endpoints out."""

import asyncio
import contextlib
import json
import threading
import urllib.request

import numpy as np
import pytest
import soundfile
from browser import chromium
from fake_transcriber import CHUNK, RATE, TASKS, FakeTranscriber

from tokenverse_pp.decoding.streaming.events import Event
from tokenverse_pp.serving.access import Access
from tokenverse_pp.serving.protocol import Limits
from tokenverse_pp.serving.server import StreamingServer
from tokenverse_pp.serving.worker import Engine
from tokenverse_pp.tasks.result import transcript_of_words
from tokenverse_pp.tasks.transcript import Word

pytestmark = pytest.mark.browser
EVIL = "<img/src=x/onerror=document.title='taken'>"
SPEECH = [  # told one a chunk
    ("token", "[FR]"), ("final", "bonjour"), ("token", "[NE]"), ("final", "amélie"), ("final", "poulain"),
    ("token", "[/NE]"), ("token", "[ENDP]"), ("token", "[SCD]"), ("final", f"oui {EVIL}"), ("token", "[ENDP]"),
]  # fmt: skip


class Scripted(FakeTranscriber):
    """Says `SPEECH`, an event for each tenth of a second that holds sound, and what it heard at its end."""

    def __init__(self):
        super().__init__()
        self.tasks, self.loudness, self.talks_on = [], [], False

    def open(self, tasks=None, name=None, search=None, pauses=None, languages=None):
        self.tasks.append(tuple(tasks))
        stream = super().open(tasks, name, search)
        stream.pauses = pauses
        return stream

    def set_tasks(self, stream, tasks):
        self.tasks.append(tuple(tasks))
        stream.tasks = tasks

    def _chunk(self, stream, chunk):
        stream.heard += len(chunk)
        loud = float(np.sqrt(np.mean(np.square(chunk))))
        self.loudness.append(loud)
        done = len(stream.said)
        if self.talks_on:
            return [self._event(stream, "partial", "euh")]
        if loud < 0.01 or done >= len(SPEECH):
            return [Event("pause", stream.heard / RATE, "", endpoint=0.834)] if stream.pauses else []
        stream.said.append(SPEECH[done][1])
        partial = "peut-être [ENDP]" if done < len(SPEECH) - 1 else ""
        return [self._event(stream, *SPEECH[done]), self._event(stream, "partial", partial)]


@contextlib.contextmanager
def running(page, token=None):
    """A server in a thread, with the page open; at the end the browser must not have complained.

    Its ``scripted`` is the transcriber; ``stop_now()`` stops the server.
    """
    scripted, loop = Scripted(), asyncio.new_event_loop()
    server = StreamingServer(
        Engine(dict.fromkeys((False, True), scripted), TASKS, CHUNK, language_tokens=("[FR]", "[ES-419]")),
        Limits(closing_seconds=2),
        Access(token),
    )
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    server.scripted, server.stop_now = scripted, lambda: run(server.stop())
    try:
        run(server.start("127.0.0.1"))
        server.url = f"http://127.0.0.1:{server.port}/"
        open_page(page, server)
        yield server
        assert not [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    finally:
        server.stop_now()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A browser whose microphone plays a file of sound, again and again."""
    folder = tmp_path_factory.mktemp("microphone")
    time = np.arange(2 * 48000) / 48000
    soundfile.write(folder / "microphone.wav", 0.5 * np.sin(2 * np.pi * 440 * time), 48000, subtype="PCM_16")
    flags = [
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={folder / 'microphone.wav'}",
        "--window-size=900,900",
    ]
    with chromium(tmp_path_factory.mktemp("profile"), *flags) as driver:
        driver.implicitly_wait(60)
        yield driver


def wait_for(page, script):
    """What a script returns once that is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(page, 60, poll_frequency=0.05).until(lambda driver: driver.execute_script(f"return {script}"))


def open_page(page, server):
    page.get(server.url)
    wait_for(page, "document.querySelectorAll('#tasks input').length === 5")


def by_id(page, name):
    return page.find_element("id", name)


SAYS = "document.getElementById('status').textContent"
TURNS = """[...document.querySelectorAll('#transcript .turn')].map((turn) => [turn.className,
  [...turn.childNodes].map((node) => node.nodeType === 3 ? node.data : `${node.className}:${node.textContent}`)])"""
WHOLE = [
    ["turn s0", ["bonjour", " ", "entity:amélie poulain", "endpoint:"]],
    ["turn s1", [f"oui {EVIL}", "endpoint:"]],
]


def test_the_microphone(page):
    from selenium.webdriver.common.keys import Keys

    with running(page) as server:
        by_id(page, "microphone").click()
        # While it is spoken: what may still change stands at the end.
        wait_for(page, "document.querySelector('#transcript .partial')?.textContent.trim() === 'peut-être'")
        assert not by_id(page, "microphone").is_enabled()
        wait_for(page, "document.querySelectorAll('#transcript .endpoint').length === 2")
        assert page.switch_to.active_element.get_attribute("id") == "stop"
        page.switch_to.active_element.send_keys(Keys.SPACE)
        wait_for(page, f"{SAYS}.startsWith('Microphone: done')")
        assert page.execute_script(f"return {TURNS}") == WHOLE
        assert by_id(page, "language").text == "FR"
        assert page.title != "taken" and not by_id(page, "error").is_displayed()
        assert page.switch_to.active_element.get_attribute("id") == "microphone"
        # What arrived is the sound of the file: a sine of 0.5 at 16 kHz.
        loud = [x for x in server.scripted.loudness if x > 0.01]
        assert abs(np.median(loud) - 0.5 / np.sqrt(2)) < 0.08


def test_a_file_by_keyboard_with_tasks(page, tmp_path):
    from selenium.webdriver.common.keys import Keys

    sine = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(2.2 * 32000)) / 32000)
    soundfile.write(tmp_path / "talk.flac", np.stack([sine, 0 * sine], 1), 32000)
    with running(page) as server:
        ner = page.find_element("css selector", "#tasks input[value=ner]")
        assert not page.find_element("css selector", "#tasks input[value=asr]").is_enabled()
        ner.send_keys(Keys.SPACE)
        assert not by_id(page, "complete").is_displayed()
        page.find_element("css selector", "#more summary").click()
        by_id(page, "pauses").click()
        by_id(page, "microphone").send_keys(Keys.TAB)
        assert page.switch_to.active_element.get_attribute("id") == "file"
        by_id(page, "file").send_keys(str(tmp_path / "talk.flac"))
        wait_for(page, f"{SAYS}.startsWith('talk.flac: done')")
        scripted = server.scripted
        assert scripted.tasks == [("asr", "scd", "endp", "lid")]
        assert by_id(page, "complete").is_displayed() and by_id(page, "percent").text == "83%"
        assert by_id(page, "endpoint").get_property("value") == 0.834
        assert page.execute_script(f"return {TURNS}") == WHOLE
        # Two channels became one of half the loudness, 32 kHz became 16.
        assert len(scripted.loudness) in (22, 23) and abs(np.median(scripted.loudness) - 0.25 / np.sqrt(2)) < 0.01

        (tmp_path / "no.wav").write_text("no audio")
        by_id(page, "file").send_keys(str(tmp_path / "no.wav"))
        wait_for(page, "document.getElementById('error').textContent.includes('no.wav: the browser cannot read')")


# Words and task tokens; the last are of no task that the page knows, or of a language that the server lacks.
WRITTEN = [
    "[ES-419] [CAP] bonjour [,] [NE] [CAP] amélie [/NE] [!] [ENDP] [SCD] [ALLCAPS] ça va [?] [.]",
    "[FR] [!] [CAP] ßa [:] [CAP] élan [ALLCAPS] straße [CAP]",
    "[HAPPY] [CAP] مرحبا [,] нет [?] नमस्ते [.] [CAP] [ALLCAPS] 你好 [,] ok2 [.] かな [!]",
    "[TR] [CAP] istanbul [,] [ALLCAPS] ışık [.]",
    "你 好 [,] [NE] 北 京 [/NE] の 人々 [.] [ENDP] コーヒー を ok 3 月 [!]",
]
SHOWN_LANGUAGE = ["ES-419", "FR", None, "TR", None]
# Shows each text three times: all of it final, its second half a partial, all of it a partial.
SHOW = """const [texts, done] = arguments;
import("/transcript.js").then(({ Transcript }) => done(texts.map((text) => [1, 0.5, 0].map((share) => {
  const [box, badge] = ["div", "span"].map((name) => document.createElement(name));
  const transcript = new Transcript(box, badge);
  transcript.languages = new Set(["[FR]", "[ES-419]", "[TR]"]);
  transcript.punctuated = true;
  const items = text.split(" ");
  const rest = items.splice(share * items.length);
  for (const item of items) transcript.show({ kind: item.startsWith("[") ? "token" : "final", text: item });
  transcript.show({ kind: "partial", text: rest.join(" ") });
  const turns = [...box.children].map((turn) => turn.textContent);
  return [turns.join(" "), badge.hidden ? null : badge.textContent];
}))), (error) => done(String(error)));"""


def test_punctuation_case_and_language_are_those_of_the_server(page):
    texts = []
    for text in WRITTEN:
        words = [Word(word, i, i, 1.0) for i, word in enumerate(text.split())]
        heard = transcript_of_words(words, ("asr", "punct", "lid"), len(words))
        texts.append(heard.written_text())
    assert texts[0] == "Bonjour, Amélie! ÇA va?" and texts[3].startswith("İ")
    assert texts[4] == "你好，北京の人々。コーヒーを ok 3 月！"
    with running(page) as server:
        health = json.loads(urllib.request.urlopen(f"{server.url}health").read())
        assert health["language_tokens"] == ["[FR]", "[ES-419]"]
        shown = page.execute_async_script(SHOW, WRITTEN)
    for found, text, language in zip(shown, texts, SHOWN_LANGUAGE):
        assert [one for one, _ in found[:2]] == [text, text]
        # In a partial the language is not read: without it [TR] has other capitals.
        assert found[2][0] == (text.replace("İ", "I") if language == "TR" else text)
        assert [badge for _, badge in found] == [language, language, None]


def test_tasks_are_switched_and_a_server_that_stops_is_told_of(page):
    with running(page) as server:
        by_id(page, "microphone").click()
        wait_for(page, f"{SAYS}.includes('heard')")
        page.find_element("css selector", "#tasks input[value=scd]").click()
        scripted = server.scripted
        page.find_element("css selector", "#tasks input[value=lid]").click()
        wait_for(page, "document.querySelectorAll('#transcript .endpoint').length === 2")
        assert scripted.tasks == [TASKS, ("asr", "endp", "ner", "lid"), ("asr", "endp", "ner")]
        server.stop_now()
        wait_for(page, "document.getElementById('error').textContent.includes('the server is shutting down')")
        assert by_id(page, "microphone").is_enabled() and page.execute_script(f"return {TURNS}")[0] == WHOLE[0]


def test_the_probability_of_an_endpoint_is_that_of_a_pause(page):
    with running(page) as server:
        page.find_element("css selector", "#more summary").click()
        by_id(page, "pauses").click()
        by_id(page, "microphone").click()
        wait_for(page, "document.getElementById('percent').value === '83%'")
        server.scripted.talks_on = True
        wait_for(page, "document.getElementById('percent').value === '0%'")
        by_id(page, "stop").click()
        wait_for(page, f"{SAYS}.startsWith('Microphone: done')")


def test_tasks_that_are_switched_while_the_last_words_are_awaited_end_no_stream(page):
    with running(page) as server:
        by_id(page, "microphone").click()
        wait_for(page, f"{SAYS}.includes('heard')")
        server.scripted.gate.clear()
        by_id(page, "stop").click()
        page.find_element("css selector", "#tasks input[value=scd]").click()
        server.scripted.gate.set()
        wait_for(page, f"{SAYS}.startsWith('Microphone: done')")
        assert server.scripted.tasks == [TASKS] and not by_id(page, "error").is_displayed()


def test_a_token_and_the_other_options(page):
    with running(page, token="abc") as server:
        by_id(page, "microphone").click()
        wait_for(page, "document.getElementById('error').textContent === 'token missing (unauthorised)'")
        by_id(page, "token").send_keys("abc")
        by_id(page, "spoken").send_keys("fr, nl,")
        by_id(page, "hotwords").send_keys("amélie poulain\n\n oui ")
        by_id(page, "microphone").click()
        wait_for(page, f"{SAYS}.includes('heard')")
        assert not by_id(page, "error").is_displayed()
        assert not by_id(page, "untrained").is_displayed()
        by_id(page, "stop").click()
        wait_for(page, f"{SAYS}.startsWith('Microphone: done')")
        (search,) = server.scripted.searches
        assert (search.languages, search.hotwords) == (("fr", "nl"), ("amélie poulain", "oui"))
        health = json.loads(urllib.request.urlopen(f"{server.url}health").read())
        assert health["ended"] == {"unauthorised": 1, "end": 1}


def test_dark_and_light(page):
    with running(page) as server:
        shades = []
        for scheme in ("light", "dark"):
            page.execute_cdp_cmd(
                "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            )
            open_page(page, server)
            shades.append(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
        assert shades == ["rgb(246, 247, 249)", "rgb(18, 22, 29)"]
