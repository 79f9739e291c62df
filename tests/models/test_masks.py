"""Chunk masks against their definition, frame by frame."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.losses.devices import scaled_dot_product_attention
from tokenverse_pp.models.encoders.base import attention_bias
from tokenverse_pp.models.encoders.chunks import ChunkGrid, chunk_grid, chunk_mask, chunked_convolution, sink_mask

GRIDS = st.builds(
    lambda registers, *numbers: ChunkGrid(*numbers).behind(registers),
    st.sampled_from([0, 0, 1, 4, 10]),
    st.integers(1, 7),
    st.integers(0, 3),
    st.integers(-1, 4),
    st.integers(0, 9),
)


def printed(mask):
    return [" ".join("1" if seen else "." for seen in row) for row in mask.tolist()]


@given(st.integers(1, 25), GRIDS)
def test_a_frame_sees_chunk_left_chunks_and_sinks(size, grid):
    """Frames of audio by definition; register frames as the audio's first frames of all, and sinks."""
    mask = chunk_mask(size, grid)

    def chunk(frame):
        audio = frame - grid.registers
        return 0 if audio < 0 else (audio + grid.delay) // grid.size

    for t in range(size):
        mine = chunk(t)
        for u in range(size):
            theirs = chunk(u)
            near = grid.left_chunks < 0 or theirs >= mine - grid.left_chunks
            assert bool(mask[t, u]) == (theirs <= mine and (near or u < grid.sinks))


@given(st.integers(1, 25), GRIDS)
def test_sinks_are_what_the_window_lacks(size, grid):
    window = chunk_mask(size, replace(grid, sinks=0))
    sinks = sink_mask(size, grid)
    assert not (window[:, : sinks.shape[1]] & sinks).any()
    window[:, : sinks.shape[1]] |= sinks
    assert torch.equal(window, chunk_mask(size, grid))


def test_docstrings_print_what_the_functions_give():
    for function, size, grids in [
        (chunk_mask, 8, [ChunkGrid(2, 1, 1, 0), ChunkGrid(2, 1, 1, 1)]),
        (sink_mask, 6, [ChunkGrid(2, 0, 0, 3)]),
    ]:
        rows = zip(*(printed(function(size, grid)) for grid in grids))
        assert "\n".join("        " + "        ".join(row) for row in rows) in function.__doc__


@given(GRIDS, st.integers(0, 20), st.integers(0, 20))
def test_segments_end_where_chunks_do(grid, start, count):
    pieces = torch.arange(start, start + count).split(grid.segments(start, count)) if count else []
    assert sum(map(len, pieces)) == count
    chunks = [set(grid.chunk_of(grid.registers + piece).tolist()) for piece in pieces]
    assert all(len(chunk) == 1 for chunk in chunks)
    assert sorted(c for chunk in chunks for c in chunk) == [c for chunk in chunks for c in chunk]
    assert len({c for chunk in chunks for c in chunk}) == len(chunks)


@given(GRIDS, st.integers(1, 40), st.integers(1, 3))
def test_a_chunked_convolution_is_one_whose_next_chunks_are_zero(grid, size, right):
    """Register frames are convolved alone."""
    torch.manual_seed(0)
    conv, x = torch.nn.Conv1d(2, 2, 2 * right + 1, padding=right), torch.randn(1, size + grid.registers, 2)
    found, frames = chunked_convolution(conv, x, grid), torch.arange(size + grid.registers)
    for frame in frames.tolist():
        if frame < grid.registers:
            seen = frames < grid.registers
        else:
            ends = (frame - grid.registers + grid.delay) // grid.size * grid.size + grid.size - grid.delay
            seen = (frames >= grid.registers) & (frames < grid.registers + ends)
        expected = conv(torch.where(seen[:, None], x, 0.0).transpose(1, 2))[0, :, frame]
        torch.testing.assert_close(found[0, frame], expected, atol=1e-5, rtol=1e-5)


@given(st.integers(1, 6), st.integers(0, 3), st.integers(1, 3), st.integers(1, 40), st.sampled_from([0, 1, 5]))
def test_stacked_frames_are_in_the_chunk_of_their_last(half, delay, stack, size, registers):
    grid = ChunkGrid(half * stack, delay).behind(registers * stack)
    frames = torch.arange(size)
    assert torch.equal(grid.stacked(stack).chunk_of(frames), grid.chunk_of(frames * stack + stack - 1))


@given(st.sampled_from([40, 320, 640]), st.integers(1, 1000))
def test_a_frame_is_in_the_chunk_where_its_last_sample_arrives(chunk_ms, receptive):
    frames = torch.arange(100)
    grid = chunk_grid(ChunkOptions(chunk_ms), 320, receptive)
    assert torch.equal(grid.chunk_of(frames), (320 * frames + receptive - 1) // (16 * chunk_ms))


def test_rows_without_keys_give_no_nan():
    """Padded frames in chunks where nothing is valid: attention over nothing."""
    seen = chunk_mask(6, ChunkGrid(2, 0, 0))
    bias = attention_bias(torch.tensor([2]), 6, torch.device("cpu"), seen)
    q = torch.randn(1, 2, 6, 4)
    assert torch.isfinite(scaled_dot_product_attention(q, q, q, bias)).all()
    assert torch.isfinite((q @ q.transpose(-2, -1) + bias).softmax(-1)).all()


@pytest.mark.parametrize("wrong", [dict(chunk_ms=-1), dict(left_chunks=-2), dict(sinks=-1)])
def test_options_out_of_range_are_named(wrong):
    name = next(iter(wrong)).replace("_", "-")
    with pytest.raises(UserError, match=f"--{name}"):
        ChunkOptions(**wrong)


def test_a_chunk_is_a_whole_number_of_frames():
    with pytest.raises(UserError, match="--chunk-ms=30: expected a multiple of 20 ms"):
        chunk_grid(ChunkOptions(30), 320, 400)
    with pytest.raises(UserError, match="multiple of 40 ms"):
        chunk_grid(ChunkOptions(60), 320, 400, stack=2)
