"""The README of an exported folder."""

from __future__ import annotations

from tokenverse_pp.runtime.folder import (
    DESCRIPTION,
    ENCODER,
    FIRST,
    JOINER,
    LOG_MEL,
    PACKAGES,
    PREDICTOR,
    WEIGHTS,
    Description,
)

TEXT = """# An exported tokenverse_pp model

{about}

    python -m tokenverse_pp.runtime THIS_FOLDER recording.wav

or

    from tokenverse_pp.runtime import Runtime

    print(Runtime("THIS_FOLDER").transcribe("recording.wav", tasks={tasks}).text)

Neither torch nor lhotse nor transformers is needed, only (soundfile to read files, soxr for other rates than 16 kHz):

    pip install --no-deps tokenverse_pp && pip install {packages}

| file | what | inputs | outputs |
|---|---|---|---|
| {encoder} | encoder | {inputs}, {rest} | `frames` (N, T, {dim}), `frame_lens` (N,) |
| {predictor} | predictor | `context` (M, {context}) int64 | `state` (M, {dim}) |
| {joiner} | joiner | `frame` (M, {dim}), `state` (M, {dim}) | `logits` (M, {vocabulary}) |
| tokenizer.model | SentencePiece vocabulary; id {blank} is the blank | | |
| {description} | all that decoding needs to know, sums of the files, and how they compare with torch | | |

`active` holds 1 for each task that is to be decoded: {columns}. A frame lasts {shift:g} s.
"""


STREAMING = """
Streams: `{first}` takes the first chunk of {samples} samples of a stream, `{encoder}` every other one. Both take what
is kept of the stream (names, shapes and types: `streaming.states` in {description}, zeros at the start) and `active`,
and give `frames` and what is to be kept, under the same names with `.next`. They share `{weights}`. In Python:
`tokenverse_pp.runtime.StreamingRuntime`, `open`, `push`, `close`.
"""


def readme(d: Description) -> str:
    """Markdown: what the folder is, how to use it, and its graphs with their shapes."""
    languages = f", languages {', '.join(d.languages)}" if d.languages else ""
    about = f"Tasks {', '.join(d.tasks)}{languages}; weights in {d.precision}; tokenverse_pp {d.tokenverse_pp}."
    inputs = "`inputs` (N, S) float32 audio at 16 kHz"
    if d.input == LOG_MEL and d.mel is not None:
        inputs = f"`inputs` (N, {d.mel['bins']}, T') float32 log-mel (`tokenverse_pp.runtime.log_mel`)"
    more = ""
    if d.streaming is not None:
        names = {"first": FIRST, "encoder": ENCODER, "description": DESCRIPTION, "weights": WEIGHTS}
        more = STREAMING.format(samples=d.streaming["chunk_samples"], **names)
    text = TEXT.format(
        about=about,
        packages=" ".join(PACKAGES),
        tasks=d.tasks,
        encoder=ENCODER,
        predictor=PREDICTOR,
        joiner=JOINER,
        description=DESCRIPTION,
        inputs=inputs,
        rest=f"`lens` (N,) int64 samples, `active` (N, {len(d.tasks)}) float32",
        dim=d.joiner_dim,
        context=d.context_size,
        vocabulary=d.vocab_size,
        blank=d.blank,
        columns=", ".join(d.tasks),
        shift=d.frame_shift,
    )
    return text + more
