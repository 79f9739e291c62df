// The transcript as it grows: a paragraph a turn, entities and endpoints in it, what may still change at its end.

const COLOURS = 4;
const TASK_TOKENS = /\[[^\]\s]+\]\s*/g;

export class Transcript {
  // box: the element that holds it; badge: the element for the language.
  constructor(box, badge) {
    this.box = box;
    this.badge = badge;
    this.clear();
  }

  clear() {
    this.box.replaceChildren();
    this.badge.hidden = true;
    this.turns = 0;
    this.turn = null; // the paragraph that is written to
    this.entity = null; // the entity that is open in it
    this.waiting = ""; // what may still change
    this.partial = document.createElement("span");
    this.partial.className = "partial";
  }

  // One event of the server: final words, a task token, or words that may still change.
  show(event) {
    this.partial.remove();
    const atEnd = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 40;
    if (event.kind === "final") this.words(event.text);
    else if (event.kind === "token") this.token(event.text);
    else if (event.kind === "partial") this.waiting = event.text.replace(TASK_TOKENS, "").trim();
    else if (event.kind === "end") this.waiting = "";
    this.place();
    if (atEnd) this.box.scrollTop = this.box.scrollHeight;
  }

  words(text) {
    const place = this.entity || this.paragraph();
    place.append(`${place.textContent ? " " : ""}${text}`);
  }

  token(text) {
    if (text === "[SCD]") {
      this.turn = this.entity = null;
    } else if (text === "[ENDP]") {
      const mark = this.span("endpoint");
      mark.title = "endpoint";
      mark.setAttribute("role", "img");
      mark.setAttribute("aria-label", "endpoint");
      this.entity = null;
      this.paragraph().append(mark);
    } else if (text === "[/NE]") {
      this.entity = null;
    } else if (text === "[NE]" || text.startsWith("[NE:")) {
      const paragraph = this.paragraph();
      if (paragraph.textContent) paragraph.append(" ");
      this.entity = this.span("entity");
      if (text !== "[NE]") this.entity.title = text.slice(4, -1);
      paragraph.append(this.entity);
    } else if (/^\[[A-Z-]+\]$/.test(text)) {
      this.badge.textContent = text.slice(1, -1);
      this.badge.hidden = false;
    }
  }

  // The paragraph of the turn that is spoken; a new one in the next colour after a change of speaker.
  paragraph() {
    if (!this.turn) {
      this.turn = document.createElement("p");
      this.turn.className = `turn s${this.turns % COLOURS}`;
      this.turns += 1;
      this.box.append(this.turn);
    }
    return this.turn;
  }

  // What may still change stands behind all that may not.
  place() {
    if (!this.waiting) return;
    const paragraph = this.paragraph();
    this.partial.textContent = `${paragraph.textContent ? " " : ""}${this.waiting}`;
    paragraph.append(this.partial);
  }

  span(name) {
    const span = document.createElement("span");
    span.className = name;
    return span;
  }
}
