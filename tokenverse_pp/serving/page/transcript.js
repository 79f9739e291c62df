// The transcript as it grows: a paragraph a turn, entities and endpoints in it, what may still change at its end.

const COLOURS = 4;
const TASK_TOKEN = /^\[[^\]\s]+\]$/;
// Punctuation and case, as tokenverse_pp/tasks/punct.py writes them.
const SIGN = /^\[([.,?!:])\]$/; // after a word
const CAPITAL = /^\[(CAP|ALLCAPS)\]$/; // before a word
const CJK = /[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}]/u;
const SIGNS = [ // of a script: that of the last letter before the sign
  [CJK, { ".": "。", ",": "，", "?": "？", "!": "！", ":": "：" }],
  [/\p{Script=Arabic}/u, { ",": "،", "?": "؟" }],
  [/\p{Script=Devanagari}/u, { ".": "।" }],
];
const DOTTED = /^\[(AZE?|AZB|CRH|GAG|TR|TUR)[\]-]/; // languages in which İ is the capital of i

const lastLetter = (word) => (word.match(/\p{L}/gu) || [""]).pop();

// What stands before the next word or sign.
class Spelling {
  constructor() {
    this.last = ""; // the last word, while it has no sign
    this.capital = ""; // the token for the next word
    this.dotted = false;
  }

  // What a sign adds to the text: nothing where no word is before it.
  sign(token) {
    if (!this.last) return "";
    const [, mark] = token.match(SIGN);
    const letter = lastLetter(this.last);
    const [, own] = SIGNS.find(([script]) => script.test(letter)) || [null, {}];
    this.last = "";
    return own[mark] || mark;
  }

  // A word with the capitals of the token before it.
  word(text) {
    if (!text) return text;
    const letters = [...text];
    const count = this.capital === "[CAP]" ? 1 : this.capital && letters.length;
    this.last = text;
    this.capital = "";
    return letters.map((letter, i) => (i < count ? this.upper(letter) : letter)).join("");
  }

  // A letter whose capital is several, such as ß, stays as it is.
  upper(letter) {
    const capital = this.dotted ? letter.toLocaleUpperCase("tr") : letter.toUpperCase();
    return [...capital].length === 1 ? capital : letter;
  }
}

export class Transcript {
  // box: the element that holds it; badge: the element for the language.
  constructor(box, badge) {
    this.box = box;
    this.badge = badge;
    this.languages = new Set(); // the server's language tokens
    this.punctuated = false; // whether punctuation is decoded: without it, all words have spaces between them
    this.clear();
  }

  clear() {
    this.box.replaceChildren();
    this.badge.hidden = true;
    this.turns = 0;
    this.turn = null; // the paragraph that is written to
    this.opened = ""; // the token of an entity that has no word yet
    this.entity = null; // the entity that is open in it
    this.before = ""; // the word before, in this paragraph
    this.spelling = new Spelling();
    this.waiting = ""; // words and task tokens that may still change
    this.partial = document.createElement("span");
    this.partial.className = "partial";
  }

  // One event of the server: final words, a task token, or words that may still change.
  show(event) {
    this.partial.remove();
    const atEnd = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 40;
    if (event.kind === "final") this.words(event.text);
    else if (event.kind === "token") this.token(event.text);
    else if (event.kind === "partial") this.waiting = event.text;
    else if (event.kind === "end") this.waiting = "";
    this.place();
    if (atEnd) this.box.scrollTop = this.box.scrollHeight;
  }

  words(text) {
    const paragraph = this.paragraph();
    let written = "";
    for (const word of text.split(" ")) {
      written += this.gap(this.before, word) + this.spelling.word(word);
      this.before = word;
    }
    if (this.opened) {
      if (written.startsWith(" ")) {
        paragraph.append(" ");
        written = written.slice(1);
      }
      this.entity = this.span("entity");
      if (this.opened !== "[NE]") this.entity.title = this.opened.slice(4, -1);
      this.opened = "";
      paragraph.append(this.entity);
    }
    (this.entity || paragraph).append(written);
  }

  // What stands between two words: a space, but in written Chinese and Japanese.
  gap(before, word) {
    const joined = this.punctuated && CJK.test(lastLetter(before)) && CJK.test(lastLetter(word));
    return before && !joined ? " " : "";
  }

  token(text) {
    if (text === "[SCD]") {
      this.turn = this.entity = null;
      this.opened = this.before = this.spelling.last = "";
    } else if (text === "[ENDP]") {
      const mark = this.span("endpoint");
      mark.title = "endpoint";
      mark.setAttribute("role", "img");
      mark.setAttribute("aria-label", "endpoint");
      this.entity = null;
      this.opened = "";
      this.paragraph().append(mark);
    } else if (text === "[NE]" || text === "[/NE]" || text.startsWith("[NE:")) {
      this.entity = null;
      this.opened = text === "[/NE]" ? "" : text;
    } else if (SIGN.test(text)) {
      const sign = this.spelling.sign(text);
      if (sign) (this.entity || this.paragraph()).append(sign);
    } else if (CAPITAL.test(text)) {
      this.spelling.capital ||= text;
    } else if (this.languages.has(text)) {
      this.spelling.dotted = DOTTED.test(text);
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
    let { before } = this;
    const spelling = Object.assign(new Spelling(), this.spelling);
    let written = "";
    for (const item of this.waiting.split(" ").filter(Boolean)) {
      if (SIGN.test(item)) written += spelling.sign(item);
      else if (CAPITAL.test(item)) spelling.capital ||= item;
      else if (!TASK_TOKEN.test(item)) {
        written += this.gap(before, item) + spelling.word(item);
        before = item;
      }
    }
    if (!written) return;
    this.partial.textContent = written;
    this.paragraph().append(this.partial);
  }

  span(name) {
    const span = document.createElement("span");
    span.className = name;
    return span;
  }
}
