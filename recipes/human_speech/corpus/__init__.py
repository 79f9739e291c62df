"""Human speech from Debian packages: game dialogues, telephone prompts and picture descriptions."""
