"""The model for whoever uses it: load, transcribe, save (docs/api.md).

`model.TokenVerse` is the model, `transcript.Transcript` what it hears, `formats` what a transcript is written as.
`transcript` and `formats` import neither torch nor lhotse.
"""
