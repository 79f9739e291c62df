"""Task vectors: nothing at the start, one row a task or a combination, and no gradient without data."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models.transducer import MAX_COMBINATION_TASKS, TaskVectors


def masks(tasks):
    return st.lists(
        st.lists(st.booleans(), min_size=tasks - 1, max_size=tasks - 1).map(lambda bits: [True, *bits]),
        min_size=1,
        max_size=5,
    )


def random_vectors(strategy, tasks=4, dim=3):
    vectors = TaskVectors(tasks, dim, strategy)
    torch.nn.init.normal_(vectors.table)
    return vectors


@pytest.mark.parametrize("strategy, rows", [("sum", 4), ("combination", 8)])
def test_table_starts_at_zero_with_a_row_for_each(strategy, rows):
    vectors = TaskVectors(4, 3, strategy)
    assert vectors.table.shape == (rows, 3) and not vectors.table.any()


@given(masks(4))
def test_sum_adds_the_rows_of_the_active_tasks(active):
    vectors = random_vectors("sum")
    expected = [sum(vectors.table[i] for i in range(4) if mask[i]) for mask in active]
    assert torch.allclose(vectors(torch.tensor(active, dtype=torch.float32)), torch.stack(expected), atol=1e-6)


@given(masks(4))
def test_combination_has_one_row_for_each_set(active):
    vectors = random_vectors("combination")
    found = vectors(torch.tensor(active, dtype=torch.float32))
    for mask, row in zip(active, found):
        assert torch.equal(row, vectors.table[sum(2**i for i in range(3) if mask[i + 1])])


@pytest.mark.parametrize("strategy", ["sum", "combination"])
def test_inactive_rows_have_a_gradient_of_zero_and_not_none(strategy):
    vectors = random_vectors(strategy)
    vectors(torch.tensor([[1.0, 0, 1, 0], [1, 0, 0, 0]])).pow(2).sum().backward()
    assert vectors.table.grad is not None
    used = {"sum": [0, 2], "combination": [0b010, 0b000]}[strategy]
    rows = vectors.table.grad.abs().sum(dim=1)
    assert [i for i, value in enumerate(rows.tolist()) if value != 0.0] == sorted(used)


def test_combination_refuses_a_set_that_was_never_trained():
    vectors = TaskVectors(3, 2, "combination")
    vectors.eval()(torch.tensor([[1.0, 1, 1]]))  # before training all are alike
    vectors.train()(torch.tensor([[1.0, 0, 1], [1, 0, 0]]))
    vectors.eval()
    vectors(torch.tensor([[1.0, 0, 1], [1, 0, 0]]))
    for unseen in ([1.0, 1, 0], [1.0, 1, 1]):
        with pytest.raises(UserError, match="never active in training"):
            vectors(torch.tensor([[1.0, 0, 1], unseen]))
    loaded = TaskVectors(3, 2, "combination").eval()
    loaded.load_state_dict(vectors.state_dict())
    with pytest.raises(UserError, match="never active in training"):
        loaded(torch.tensor([[1.0, 1, 0]]))


def test_impossible_strategies_are_refused():
    with pytest.raises(UserError, match="strategy='product'"):
        TaskVectors(3, 2, "product")
    TaskVectors(MAX_COMBINATION_TASKS + 1, 2, "combination")
    with pytest.raises(UserError, match="at most"):
        TaskVectors(MAX_COMBINATION_TASKS + 2, 2, "combination")
