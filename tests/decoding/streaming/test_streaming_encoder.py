"""Streaming chunk by chunk gives what the masked full pass gives, in any batch, from bounded state."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import FAMILIES, KINDS, SMALL, STYLES, mask_of, masked_pass, noise, stream, tiny_transducer
from transformers import WavLMConfig, WavLMModel

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.decoding.streaming.encoder import StreamingEncoder
from tokenverse_pp.models.encoders import EncoderConfig
from tokenverse_pp.models.encoders.kinds import FinetuneEncoder
from tokenverse_pp.models.encoders.wav2vec2 import WavLMBackbone

transducer = lru_cache(maxsize=None)(tiny_transducer)
OPTIONS = st.builds(
    ChunkOptions,
    chunk_ms=st.sampled_from([40, 80, 160, 320, 640]),
    left_chunks=st.sampled_from([-1, 0, 1, 2, 4]),
    sinks=st.sampled_from([0, 1, 4, 16]),
)


def close(found, expected):
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-4), (found - expected).abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12)
@given(OPTIONS, st.integers(1, 24000), st.sampled_from([1, 2]), st.integers(0, 3))
def test_steps_equal_the_masked_pass(family, kind, options, samples, stack, seed):
    model, audio, active = transducer(family, kind, stack), noise(samples, seed), mask_of(seed)
    found, _ = stream(model, audio, active, options)
    if int(model.encoder.feature_lens(torch.tensor([samples]))) == 0:
        assert found.shape == (0, model.encoder.output_dim)
    else:
        close(found, masked_pass(model, audio, active, options))


@pytest.mark.parametrize("family", ["whisper", "wav2vec2-layer"])
@pytest.mark.parametrize("sinks", [0, 4])
def test_a_seam_before_all_layers(family, sinks):
    """As in the example model: no layer is below the seam, and frames are counted once all the same."""
    model, audio = transducer(family, "split", 2, split_layer=0), noise(9000, 1)
    for options in (ChunkOptions(80, 1, sinks), ChunkOptions(160, 4, sinks)):
        close(stream(model, audio, mask_of(1), options)[0], masked_pass(model, audio, mask_of(1), options))


@pytest.mark.parametrize(
    "family, kind, split_layer", [("whisper", "frozen", 1), ("hubert-group", "split", 1), ("whisper", "split", 0)]
)
@settings(max_examples=20)
@given(OPTIONS, st.integers(1, 16000), st.sampled_from([1, 2]), st.sampled_from([2, 10]))
def test_register_frames_are_those_of_the_masked_pass(family, kind, split_layer, options, samples, stack, registers):
    """They are more than the frames of a chunk, too."""
    model, audio = transducer(family, kind, stack, split_layer=split_layer, registers=registers), noise(samples, 2)
    if int(model.encoder.feature_lens(torch.tensor([samples]))):
        close(stream(model, audio, mask_of(1), options)[0], masked_pass(model, audio, mask_of(1), options))


@pytest.mark.parametrize("kind", ["frozen", "split"])
@pytest.mark.parametrize("left_chunks, sinks", [(1, 3), (2, 0), (-1, 0)])
def test_other_tasks_bring_their_own_register_frames(kind, left_chunks, sinks):
    """From the next chunk on nothing depends on those of the tasks before."""
    model = transducer("whisper", kind, 2, registers=6)
    encoder = StreamingEncoder(model, ChunkOptions(80, left_chunks, sinks))
    chunks = list(noise(encoder.chunk_samples * 7, 1).split(encoder.chunk_samples))

    def rest(state):
        outs = []
        for chunk in chunks[4:]:
            (out,), (state,) = encoder.step([chunk], [state], [False])
            outs.append(out)
        assert len(torch.cat(outs)) == 3 * encoder.chunk_frames
        return torch.cat(outs)

    state = encoder.start(mask_of(1))
    for chunk in chunks[:4]:
        _, (state,) = encoder.step([chunk], [state], [False])
    windows = [window for stage in encoder.stages[3:] for window in getattr(stage, "windows", ())]  # above the seam
    spoilt = replace(state, tensors=dict(state.tensors))
    for window in windows:
        count = 3 if window.sinks.startswith("context") else 6
        spoilt.tensors[window.sinks] = spoilt.tensors[window.sinks].clone()
        spoilt.tensors[window.sinks][..., :count, :] += 1.0
    assert state.switched(mask_of(1)) is state
    assert (rest(spoilt) - rest(state)).abs().min() > 0
    assert torch.equal(rest(spoilt.switched(mask_of(3))), rest(state.switched(mask_of(3))))
    # The new ones hear nothing that came before: in the second layer above the seam this is the whole difference.
    for window in windows:
        for name in (window.sinks, window.window):
            spoilt.tensors[name] = spoilt.tensors[name] + 1.0
    second, count = ("context1.sinks", 3) if kind == "frozen" else ("layer2.sinks", 6)
    kept = [encoder.step([chunks[4]], [x.switched(mask_of(3))], [False])[1][0].tensors[second] for x in (spoilt, state)]
    assert torch.equal(kept[0][..., :count, :], kept[1][..., :count, :])
    old = replace(state, active=mask_of(3))
    assert (rest(state.switched(mask_of(3))) - rest(old)).abs().min() > 0


@pytest.mark.parametrize(
    "family, kind, registers",
    [("wav2vec2-group", "finetune", 0), ("whisper", "frozen", 0), ("whisper", "split", 0), ("whisper", "split", 6)],
)
@settings(max_examples=8)
@given(OPTIONS, st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 4)), min_size=1, max_size=5))
def test_a_stream_in_any_batch_is_the_stream_alone(family, kind, registers, options, drawn):
    """Streams start at different steps, are of different lengths, and have tasks of their own."""
    model = transducer(family, kind, 2, registers=registers)
    encoder = StreamingEncoder(model, options)
    size = encoder.chunk_samples
    audios = [noise(samples, seed) for seed, (samples, _) in enumerate(drawn)]
    states = [encoder.start(mask_of(seed)) for seed in range(len(drawn))]
    outs, heard, step = [[] for _ in drawn], [-1] * len(drawn), 0
    while any(at < len(audio) for at, audio in zip(heard, audios)):
        rows = [row for row, (_, delay) in enumerate(drawn) if delay <= step and heard[row] < len(audios[row])]
        rows.sort(key=lambda row: (row * 7 + step) % 5)
        starts = [max(0, heard[row]) for row in rows]
        last = [start + size >= len(audios[row]) for row, start in zip(rows, starts)]
        chunks = [audios[row][start : start + size] for row, start in zip(rows, starts)]
        out, new = encoder.step(chunks, [states[row] for row in rows], last)
        for row, start, frames, state in zip(rows, starts, out, new):
            outs[row].append(frames)
            states[row], heard[row] = state, max(start + size, 1)
        step += 1
    for seed, (audio, frames) in enumerate(zip(audios, outs)):
        alone, _ = stream(model, audio, mask_of(seed), options)
        close(torch.cat(frames), alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_masked_pass_is_the_pass_alone(family):
    model, options = transducer(family, "frozen", 2), ChunkOptions(160, 1, 3)
    audios = [noise(samples, samples) for samples in (9000, 2000, 6100)]
    lens = torch.tensor([len(audio) for audio in audios])
    padded = torch.nn.utils.rnn.pad_sequence(audios, batch_first=True, padding_value=9.0)
    active = torch.stack([mask_of(seed) for seed in range(3)])
    with torch.no_grad():
        out, frames = model.encode(padded, lens, active, chunks=options)
    for row, audio in enumerate(audios):
        close(out[row, : frames[row]], masked_pass(model, audio, active[row], options))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["wav2vec2-group", "whisper"])
def test_state_stays_as_large_as_it_is_after_the_first_chunk(family, kind):
    model = transducer(family, kind, 2)
    encoder = StreamingEncoder(model, ChunkOptions(80, 2, 3))
    state, sizes = encoder.start(mask_of(1)), []
    for number in range(40):
        (out,), (state,) = encoder.step([noise(encoder.chunk_samples, number)], [state], [False])
        sizes.append({key: value.untyped_storage().nbytes() for key, value in state.tensors.items()})
        assert number == 0 or len(out) == encoder.chunk_frames
    assert sizes[1] == sizes[2] == sizes[20] == sizes[39]
    unbounded = StreamingEncoder(model, ChunkOptions(80, -1, 3))
    state, grown = unbounded.start(mask_of(1)), []
    for number in range(4):
        _, (state,) = unbounded.step([noise(encoder.chunk_samples, number)], [state], [False])
        grown.append(sum(value.numel() for value in state.tensors.values()))
    assert grown[1] < grown[2] < grown[3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_after_a_chunk_is_looked_at(family, kind):
    """Whatever comes after its end leaves a chunk's output, and that of those before, exactly as it is."""
    model, options = transducer(family, kind, 2), ChunkOptions(160, 2, 3)
    assert model.encoder.lookahead_ms(options) == 0
    encoder = StreamingEncoder(model, options)
    size, active, audio = encoder.chunk_samples, mask_of(3), noise(4 * 2560 + 700)
    whole = masked_pass(model, audio, active, options)
    for chunks in (1, 2, 3):
        changed = torch.cat([audio[: chunks * size], 3 + noise(len(audio) - chunks * size, 99)])
        frames = chunks * encoder.chunk_frames - 1  # the first chunk has one less
        other = masked_pass(model, changed, active, options)
        assert torch.allclose(other[:frames], whole[:frames], atol=1e-5)
        assert not torch.allclose(other[frames : frames + 2], whole[frames : frames + 2], atol=1e-2)


@pytest.mark.parametrize(
    "family, kind", [("wav2vec2-layer", "finetune"), ("hubert-group", "frozen"), ("whisper", "frozen")]
)
def test_the_pretrained_form_looks_ahead_as_far_as_it_says(family, kind):
    model, options = transducer(family, kind, 2), ChunkOptions(80, 2, 3, strict=False)
    ahead = model.encoder.lookahead_ms(options)
    assert ahead > 0
    audio, active = noise(14000), mask_of(3)
    whole = masked_pass(model, audio, active, options)
    end, frames = 2 * 1280, 2 * 2 - 1
    for seen, same in ((end + int(ahead * 16), True), (end + 20, False)):
        changed = torch.cat([audio[:seen], 3 + noise(len(audio) - seen, 99)])
        other = masked_pass(model, changed, active, options)
        assert torch.allclose(other[:frames], whole[:frames], atol=1e-5) is same
    with pytest.raises(UserError, match=f"{ahead:g} ms ahead"):
        StreamingEncoder(model, options)


@pytest.mark.parametrize("options", [ChunkOptions(0), ChunkOptions(800, 0, 0)])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_chunk_as_long_as_the_utterance_is_full_context(family, options):
    model, audio, active = transducer(family, "frozen", 2), noise(9000), mask_of(1)
    close(masked_pass(model, audio, active, options), masked_pass(model, audio, active, None))


def test_tasks_may_change_between_chunks():
    """Behind the encoder: from the change on, the output is that of a stream with the new tasks."""
    model, options, audio = transducer("whisper", "frozen", 2, "encoder"), ChunkOptions(160, 2, 0), noise(5120)
    encoder = StreamingEncoder(model, options)
    (first,), (state,) = encoder.step([audio[:2560]], [encoder.start(mask_of(0))], [False])
    (second,), _ = encoder.step([audio[2560:]], [state.switched(mask_of(3))], [True])
    close(first, stream(model, audio, mask_of(0), options)[0][: len(first)])
    close(second, stream(model, audio, mask_of(3), options)[0][len(first) :])


def test_stored_features_of_chunks_continue_as_audio_does():
    model, options, audio = transducer("whisper", "split", 2), ChunkOptions(160, 1, 3), noise(9000)
    lens, active = torch.tensor([len(audio)]), mask_of(3)[None]
    with torch.no_grad():
        features, frames = model.encoder.extract(audio[None], lens, options)
        stored, _ = model.encode(features, frames, active, stored=True, chunks=options)
    close(stored[0], masked_pass(model, audio, mask_of(3), options))


@pytest.mark.parametrize("kind", KINDS)
def test_centred_and_scaled_vectors_are_those_of_the_table_that_says_the_same(kind):
    """From audio and stored features, in full context, chunks and streams."""
    model, plain = tiny_transducer("whisper", kind, 2, code="centred", scale=3.0), tiny_transducer("whisper", kind, 2)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        for ours, theirs in (
            (model.feature_vectors, plain.feature_vectors),
            (model.encoder_vectors, plain.encoder_vectors),
        ):
            # 3 (v_0 + (2 a_1 - 1) v_1 + (2 a_2 - 1) v_2) = 3 (v_0 - v_1 - v_2) + 6 a_1 v_1 + 6 a_2 v_2
            v = ours.table
            theirs.table.copy_(torch.stack([3 * (v[0] - v[1] - v[2]), 6 * v[1], 6 * v[2]]))
    audio, chunks = noise(9000), ChunkOptions(160, 2, 3)
    for seed in range(4):
        for options in (None, chunks):
            close(masked_pass(model, audio, mask_of(seed), options), masked_pass(plain, audio, mask_of(seed), options))
        close(stream(model, audio, mask_of(seed), chunks)[0], masked_pass(plain, audio, mask_of(seed), chunks))
        with torch.no_grad():
            features, frames = model.encoder.extract(audio[None], torch.tensor([len(audio)]))
            stored, _ = model.encode(features, frames, mask_of(seed)[None], stored=True)
        close(stored[0], masked_pass(plain, audio, mask_of(seed), None))


def test_what_cannot_be_streamed_is_refused():
    model = transducer("whisper", "frozen", 2)
    for options, message in [
        (ChunkOptions(0), "needs chunks"),
        (ChunkOptions(50), "multiple of 40 ms"),
        (ChunkOptions(1000), "positions of 0.8 s"),
    ]:
        with pytest.raises(UserError, match=message):
            StreamingEncoder(model, options)
    encoder = StreamingEncoder(model, ChunkOptions(160))
    with pytest.raises(ValueError, match="100 samples: expected 2560"):
        encoder.step([noise(100)], [encoder.start(mask_of(0))], [False])
    with pytest.raises(ValueError, match="eval"):
        StreamingEncoder(tiny_transducer("whisper", "frozen").train(), ChunkOptions(160))


@pytest.mark.parametrize("family", ["wav2vec2-layer", "whisper"])
def test_hours_later_a_chunk_gives_what_it_gives_now(family):
    """A stream that begins at a frame hours later comes to the same output, once what it began with has gone by."""
    model = transducer(family, "frozen", 2)
    encoder = StreamingEncoder(model, ChunkOptions(160, 1, 0))
    early = encoder.start(mask_of(1))
    # 40 frames are five chunks, and after as many Whisper's positions start again.
    later = {"positions.frames": 400000, "layers0.frames": 400000, "context.frames": 200000}
    assert later.keys() <= early.tensors.keys()
    late = replace(early, tensors={key: value + later.get(key, 0) for key, value in early.tensors.items()})
    for number in range(12):
        outs, (early, late) = encoder.step([noise(2560, number)] * 2, [early, late], [False, False])
        assert number != 1 or not torch.allclose(*outs, atol=1e-2)
    close(*outs)


def test_wavlm_is_refused():
    config = WavLMConfig(**{**SMALL, **STYLES["layer"]})
    encoder = FinetuneEncoder(WavLMBackbone(WavLMModel(config)), EncoderConfig())
    with pytest.raises(UserError, match="WavLM cannot be run in chunks"):
        encoder.grid(ChunkOptions())
