"""Human speech from Debian packages: game dialogues (nl, cs), telephone prompts (en, es, fr, it, ru), stamp
descriptions (es, fr, ru)."""
