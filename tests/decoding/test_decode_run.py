"""Dealing batches out to processes, and what a run says of itself."""

from hypothesis import given
from hypothesis import strategies as st
from labelled_cuts import make_cut

from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.decoding.run import share


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 6))
def test_every_batch_goes_to_one_process_and_loads_are_even(sizes, processes):
    """No process has more than another by more than the longest batch; the longest come first."""
    seconds = sorted(sizes, reverse=True)
    batches = [(str(i), [make_cut(f"c{i}", [], duration=float(n))]) for i, n in enumerate(seconds)]
    shares = [share(batches, DistributedContext(rank, processes)) for rank in range(processes)]
    assert sorted(key for part in shares for key, _ in part) == sorted(key for key, _ in batches)
    for part in shares:
        keys = [int(key) for key, _ in part]
        assert keys == sorted(keys)
    loads = [sum(cut.duration for _, group in part for cut in group) for part in shares]
    assert max(loads) - min(loads) <= max(seconds, default=0)
