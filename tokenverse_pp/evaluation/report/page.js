"use strict";

// A word, a turn or a mark: the player of its utterance goes there. Times count from the start of the cut, which may
// lie anywhere in its file.
const offsetOf = (utterance) => Number(utterance.dataset.offset || 0);

document.addEventListener("click", (event) => {
  const place = event.target.closest("[data-t]");
  const utterance = place && place.closest(".utterance");
  const audio = utterance && utterance.querySelector("audio");
  if (!audio) return;
  for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
  audio.currentTime = offsetOf(utterance) + Number(place.dataset.t);
  audio.play().catch(() => {});
});

// While it plays: a line over the time line, a frame around the word; it stops where the cut ends.
for (const utterance of document.querySelectorAll(".utterance")) {
  const audio = utterance.querySelector("audio");
  if (!audio) continue;
  const head = utterance.querySelector(".head");
  const words = [...utterance.querySelectorAll(".pair[data-t]")];
  const seconds = Number(utterance.dataset.seconds);
  audio.addEventListener("play", () => {
    const time = audio.currentTime - offsetOf(utterance);
    if (time < 0 || time >= seconds) audio.currentTime = offsetOf(utterance);
  });
  audio.addEventListener("timeupdate", () => {
    const time = audio.currentTime - offsetOf(utterance);
    if (time > seconds && !audio.paused) audio.pause();
    if (head) {
      head.hidden = time < 0 || time > seconds;
      head.style.left = `${(100 * time) / seconds}%`;
    }
    const now = words.filter((word) => Number(word.dataset.t) <= time).pop();
    for (const word of words) word.classList.toggle("now", word === now);
  });
}

// Order and choice of the utterances of a list.
for (const controls of document.querySelectorAll(".controls")) {
  const list = controls.parentElement;
  const utterances = [...list.querySelectorAll(".utterance")];
  const chosen = (key) => controls.querySelector(`[data-choice="${key}"]`)?.value || "";
  controls.addEventListener("change", () => {
    const order = chosen("order");
    const compare = (a, b) =>
      order === "id" ? a.dataset.id.localeCompare(b.dataset.id) : Number(b.dataset[order]) - Number(a.dataset[order]);
    for (const utterance of [...utterances].sort(compare)) list.append(utterance);
    for (const utterance of utterances) {
      utterance.hidden = ["language", "corpus"].some((key) => chosen(key) && chosen(key) !== utterance.dataset[key]);
    }
  });
}
