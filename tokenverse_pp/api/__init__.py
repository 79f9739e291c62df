"""The Python API of a model: load, transcribe, save (docs/api.md).

`model.TokenVerse` is the model, `tasks.result.Transcript` its output; `formats` writes it. Importing the last two loads
neither torch nor lhotse.
"""
