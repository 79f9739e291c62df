// The page: one stream at a time, from the microphone or a file to the transcript.

import { RATE, microphone, pcm16, samplesOf } from "./audio.js";
import { Transcript } from "./transcript.js";

const MOST_UNSENT = 20 * 2 * RATE; // bytes that may wait in the browser: twenty seconds of speech
const AHEAD = 2 * 2 * RATE; // a file is sent while less than this waits
const TASK_NAMES = {
  asr: "words", scd: "speaker changes", endp: "endpoints", ner: "named entities", lid: "language",
  punct: "punctuation and case",
};

const $ = (id) => document.getElementById(id);
const transcript = new Transcript($("transcript"), $("language"));
let current = null; // the stream that runs

const say = (text) => { $("status").textContent = text; };
const complain = (text) => {
  $("error").textContent = text;
  $("error").hidden = !text;
};

// A field of the start: the texts that are not empty, nothing where there are none.
const given = (field, texts) => {
  const found = texts.map((text) => text.trim()).filter(Boolean);
  return found.length ? { [field]: found } : {};
};

// The probability that the utterance is complete, in a pause; 0 while words come.
const showEndpoint = (probability) => {
  $("endpoint").value = probability;
  $("percent").value = `${Math.round(100 * probability)}%`;
};

// One stream: a websocket, and what ends its audio.
class Stream {
  constructor(name) {
    this.name = name;
    this.seconds = 0;
    this.stopAudio = null;
    this.ended = false; // no more audio
    this.over = false; // nothing more is told
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    this.socket = new WebSocket(`${scheme}//${location.host}/stream`);
    this.socket.binaryType = "arraybuffer";
    this.ready = new Promise((resolve, reject) => { Object.assign(this, { resolve, reject }); });
    this.ready.catch(() => {});
    this.socket.onopen = () => this.tell({
      kind: "start", version: 1, sample_rate: RATE, format: "pcm16", tasks: chosenTasks(),
      partials: $("partials").checked, reset_at_endpoint: $("reset").checked, pauses: $("pauses").checked,
      ...($("token").value ? { token: $("token").value } : {}),
      ...given("language", $("spoken").value.split(",")), ...given("hotwords", $("hotwords").value.split("\n")),
    });
    this.socket.onmessage = (message) => this.hear(JSON.parse(message.data));
    this.socket.onclose = (event) => this.closed(event);
  }

  tell(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  hear(event) {
    if (event.tasks) transcript.punctuated = event.tasks.includes("punct");
    if (event.kind === "ready") {
      $("untrained").hidden = event.trained_in_chunks;
      $("complete").hidden = !$("pauses").checked;
      showEndpoint(0);
      this.resolve();
    } else if (event.kind === "error") {
      this.finish(`${event.message} (${event.code})`);
    } else if (event.kind === "pause") {
      showEndpoint(event.endpoint);
    } else if (event.kind !== "tasks") {
      if (event.kind === "final" || event.kind === "partial") showEndpoint(0);
      transcript.show(event);
      say(`${this.name}: ${event.time.toFixed(1)} s heard`);
      if (event.kind === "end") {
        this.finish("");
        say(`${this.name}: done, ${event.time.toFixed(1)} s heard.`);
      }
    }
  }

  closed(event) {
    const code = event.code === 1006 ? "the server cannot be reached, or refused" : `${event.code} ${event.reason}`;
    this.finish(`The connection was closed: ${code}.`);
  }

  push(samples) {
    if (this.ended || this.over) return;
    if (this.socket.bufferedAmount > MOST_UNSENT) {
      this.finish("The server is too slow: more than twenty seconds of speech wait to be sent.");
      return;
    }
    this.seconds += samples.length / RATE;
    this.socket.send(pcm16(samples));
  }

  // No more audio; the server answers what is left.
  async end() {
    if (this.ended || this.over) return;
    this.ended = true;
    if (this.stopAudio) await this.stopAudio();
    say(`${this.name}: waiting for the last words`);
    this.tell({ kind: "end" });
    setButtons();
  }

  finish(error) {
    if (this.over) return;
    this.over = true;
    this.reject(new Error(error));
    if (error) {
      complain(error);
      say("Stopped.");
    }
    this.socket.close();
    if (this.stopAudio) this.stopAudio();
    if (current === this) current = null;
    setButtons();
    if ([$("stop"), document.body].includes(document.activeElement)) $("microphone").focus();
  }
}

function begin(name) {
  complain("");
  transcript.clear();
  say(`${name}: connecting`);
  current = new Stream(name);
  setButtons();
  $("stop").focus(); // the button that was pressed can be pressed no more
  return current;
}

async function listen() {
  const stream = begin("Microphone");
  try {
    await stream.ready;
    const stop = await microphone((piece) => stream.push(piece));
    if (stream.over || stream.ended) await stop();
    else stream.stopAudio = stop;
    if (!stream.over) say("Microphone: listening");
  } catch (error) {
    stream.finish(error.message);
  }
}

async function sendFile(file) {
  complain("");
  say(`${file.name}: reading`);
  let samples;
  try {
    samples = await samplesOf(file);
  } catch (error) {
    complain(error.message);
    say("Stopped.");
    return;
  }
  if (current) return; // the microphone was started meanwhile
  const stream = begin(file.name);
  try {
    await stream.ready;
    const began = performance.now();
    const step = RATE / 5;
    for (let i = 0; i < samples.length && !stream.over && !stream.ended; i += step) {
      while (stream.socket.bufferedAmount > AHEAD && !stream.over) await pause(20);
      if ($("real-time").checked) await pause(stream.seconds * 1000 - (performance.now() - began));
      stream.push(samples.subarray(i, i + step));
    }
    await stream.end();
  } catch (error) {
    stream.finish(error.message);
  }
}

const pause = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, Math.max(0, milliseconds)); });

function setButtons() {
  const running = current !== null;
  $("microphone").disabled = running;
  $("microphone").setAttribute("aria-pressed", String(running && current.name === "Microphone"));
  $("file").disabled = running;
  document.querySelector("label[for=file]").classList.toggle("off", running);
  $("stop").disabled = !running || current.ended;
}

const boxes = () => [...$("tasks").querySelectorAll("input")];
// None chosen where none are known yet: the server's.
const chosenTasks = () => {
  const names = boxes().filter((box) => box.checked).map((box) => box.value);
  return names.length ? names : undefined;
};

// The server's tasks as switches; asr is always on.
async function showTasks() {
  try {
    const offer = await (await fetch("page.json")).json();
    transcript.languages = new Set(offer.language_tokens);
    for (const task of offer.tasks) {
      const label = document.createElement("label");
      const box = document.createElement("input");
      Object.assign(box, { type: "checkbox", value: task, checked: true, disabled: task === "asr" });
      label.append(box, ` ${TASK_NAMES[task] || task}`);
      $("tasks").append(label);
    }
    if (offer.token_required) $("more").open = true;
  } catch (error) {
    complain(`The server does not answer: ${error.message}`);
  }
}

$("microphone").addEventListener("click", listen);
$("stop").addEventListener("click", () => current && current.end());
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  $("file").value = ""; // so that the same file can be chosen again
  if (file) sendFile(file);
});
$("tasks").addEventListener("change", () => {
  // After the end of its audio the server refuses it.
  if (current && !current.ended) current.tell({ kind: "set_tasks", tasks: chosenTasks() });
});
showTasks();
