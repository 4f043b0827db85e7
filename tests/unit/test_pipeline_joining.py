"""Rules that make what a pipeline makes of several prompts out of what it makes of each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from solverdistill.teachers.diffusers.pipelines.joining import Unexplained, learn, signature


def rows(*numbers: float) -> Tensor:
    """One row of two columns per number."""
    return torch.tensor([[number, number + 0.5] for number in numbers])


def test_rows_follow_each_other() -> None:
    join = learn(rows(1), rows(1, 1))
    assert torch.equal(join([rows(1), rows(2), rows(3)]), rows(1, 2, 3))


def test_negative_rows_come_before_all_others() -> None:
    join = learn(rows(-1, 1), rows(-1, -1, 1, 1))
    assert torch.equal(join([rows(-1, 1), rows(-2, 2)]), rows(-1, -2, 1, 2))


def test_another_dimension_may_hold_the_samples() -> None:
    join = learn(rows(1).T, rows(1, 1).T)
    assert torch.equal(join([rows(1).T, rows(2).T]), rows(1, 2).T)


def test_lists_and_nested_results() -> None:
    one = (rows(1), None, [rows(1)[0]], {"mask": rows(1), "kind": "text"})
    two = (rows(1, 1), None, [rows(1)[0], rows(1)[0]], {"mask": rows(1, 1), "kind": "text"})
    other = (rows(2), None, [rows(2)[0]], {"mask": rows(2), "kind": "text"})
    embeds, nothing, items, masks = learn(one, two)([one, other])
    assert torch.equal(embeds, rows(1, 2)) and nothing is None and masks["kind"] == "text"
    assert torch.equal(torch.stack(items), rows(1, 2)) and torch.equal(masks["mask"], rows(1, 2))


def test_what_is_shared_must_be_the_same() -> None:
    join = learn(rows(1), rows(1))
    assert torch.equal(join([rows(1), rows(1)]), rows(1))
    with pytest.raises(Unexplained, match="differs between them"):
        join([rows(1), rows(2)])


@pytest.mark.parametrize(
    ("one", "two"),
    [(rows(1), rows(1, 2)), (rows(1), rows(2)), (rows(1), torch.zeros(3, 2)), ("a", "b"), ([1, 2], [1, 2, 3])],
)
def test_what_follows_no_rule_is_refused(one: object, two: object) -> None:
    with pytest.raises(Unexplained):
        learn(one, two)


def test_prompts_of_other_lengths_do_not_go_together() -> None:
    assert signature((rows(1), "a")) == signature((rows(2), "a"))
    assert signature(torch.zeros(1, 5)) != signature(torch.zeros(1, 6))
    assert signature([torch.zeros(5)]) == signature([torch.zeros(6)])  # a list holds any lengths
