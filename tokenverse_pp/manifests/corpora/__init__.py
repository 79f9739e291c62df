"""Public corpora: lhotse's own recipe of each, then our labels. docs/corpora.md says what each gives."""
