"""Data: label schema, manifests, audio input, tokenizer, datasets and samplers, corpora, importers and editing."""
