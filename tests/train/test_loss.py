import math

import numpy as np
import pytest
import torch
from torch import Tensor
from training import examples

from conftest import unit_rows
from nvembed.data.collate import collate
from nvembed.errors import NumericsError
from nvembed.train.loss import Guide, info_nce, loss_and_gradient, neighbour_divergence
from nvembed.train.step_batch import step_batch


def double_loop(q: Tensor, p: Tensor, positive: Tensor, allowed: Tensor, temperature: float) -> list[float]:
    losses = []
    for i in range(len(q)):
        total = 0.0
        for c in range(len(p)):
            if allowed[i, c]:
                total += math.exp(float(q[i].double() @ p[c].double()) / temperature)
        right = math.exp(float(q[i].double() @ p[positive[i]].double()) / temperature)
        losses.append(-math.log(right / total))
    return losses


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("temperature", [0.02, 0.05, 1.0])
def test_against_a_double_loop(in_batch: bool, temperature: float) -> None:
    batch = collate(examples(0, 9), negatives=3, in_batch=in_batch, alone=("SNLI",))
    q, p = (torch.from_numpy(unit_rows(n, 12, n)) for n in (len(batch.queries), len(batch.passages)))
    positive, allowed = torch.from_numpy(batch.positive), torch.from_numpy(batch.allowed)
    assert not allowed.all()
    found = info_nce(q.double(), p.double(), positive_Q=positive, allowed_QC=allowed, temperature=temperature)
    expected = double_loop(q, p, positive, allowed, temperature)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)
    single = info_nce(q, p, positive_Q=positive, allowed_QC=allowed, temperature=temperature)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_masked_passages_change_nothing() -> None:
    q, p = torch.from_numpy(unit_rows(2, 8)), torch.from_numpy(unit_rows(5, 8, 1))
    positive = torch.tensor([0, 1])
    allowed = torch.tensor([[True, False, True, True, False], [False, True, True, False, False]])
    whole = info_nce(q, p, positive_Q=positive, allowed_QC=allowed, temperature=0.1)
    moved = p.clone()
    moved[4] = q[0]
    found = info_nce(q, moved, positive_Q=positive, allowed_QC=allowed, temperature=0.1)
    assert torch.equal(whole, found)


def test_no_negative_no_loss() -> None:
    q, p = torch.from_numpy(unit_rows(1, 8)), torch.from_numpy(unit_rows(1, 8, 1))
    loss = info_nce(
        q, p, positive_Q=torch.tensor([0]), allowed_QC=torch.ones(1, 1, dtype=torch.bool), temperature=0.01
    )
    assert loss.item() == pytest.approx(0, abs=1e-5)


def test_gradient_is_that_of_the_repeated_rows() -> None:
    """A text that is used several times gets the sum of its uses' gradients."""
    same = list(examples(0, 4)) + list(examples(0, 4))
    batch = collate(same, negatives=3, in_batch=True)
    plan = step_batch(batch, ranks=1, gather=True)
    assert len(plan.texts) < len(batch.queries) + len(batch.passages)
    for row, text in zip(plan.query_rows, batch.queries, strict=True):
        assert plan.texts[row][1] == text
    for row, text in zip(plan.passage_rows, batch.passages, strict=True):
        assert plan.texts[row][1] == text
    vectors = torch.from_numpy(unit_rows(len(plan.texts), 6)).double()
    loss, gradient = loss_and_gradient(
        vectors,
        query_rows=plan.query_rows,
        passage_rows=plan.passage_rows,
        positive_Q=plan.positive,
        allowed_QC=plan.allowed,
        temperature=0.1,
    )

    def value(at: Tensor) -> float:
        q, p = at[plan.query_rows], at[plan.passage_rows]
        return float(np.mean(double_loop(q, p, plan.positive, plan.allowed, 0.1)))

    assert loss == pytest.approx(value(vectors), abs=1e-9)
    for row, column in ((0, 0), (3, 5), (len(vectors) - 1, 2)):
        step = torch.zeros_like(vectors)
        step[row, column] = 1e-6
        slope = (value(vectors + step) - value(vectors - step)) / 2e-6
        assert gradient[row, column].item() == pytest.approx(slope, abs=1e-6)


def slow_divergence(student: Tensor, teacher: Tensor, temperature: float) -> list[float]:
    found = []
    for i in range(len(student)):
        others = [j for j in range(len(student)) if j != i]
        p, q = (
            [math.exp(float(rows[i].double() @ rows[j].double()) / temperature) for j in others]
            for rows in (teacher, student)
        )
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        found.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return found


def test_neighbours_against_a_double_loop() -> None:
    student, teacher = torch.from_numpy(unit_rows(7, 12)), torch.from_numpy(unit_rows(7, 5, 1))
    expected = slow_divergence(student, teacher, 0.1)
    found = neighbour_divergence(student.double(), teacher, temperature=0.1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-9)
    assert neighbour_divergence(student, teacher, temperature=0.1).dtype == torch.float32
    assert neighbour_divergence(teacher, teacher, temperature=0.1).abs().max() == 0
    assert neighbour_divergence(student[:1], teacher[:1], temperature=0.1).tolist() == [0]


def test_a_guide_adds_its_term_of_each_text_once() -> None:
    vectors, teacher = (
        torch.from_numpy(unit_rows(5, 6)).double(),
        torch.from_numpy(unit_rows(5, 3, 1)).double(),
    )
    plain = {
        "query_rows": torch.tensor([0]),
        "passage_rows": torch.tensor([1, 2]),
        "positive_Q": torch.tensor([0]),
        "allowed_QC": torch.ones(1, 2, dtype=torch.bool),
        "temperature": 0.1,
    }
    distinct = torch.tensor([0, 1, 2, 4])
    without, _ = loss_and_gradient(vectors, **plain)
    found, gradient = loss_and_gradient(vectors, **plain, guide=Guide(teacher, distinct, 3.0, 0.2))
    expected = np.mean(slow_divergence(vectors[distinct], teacher[distinct], 0.2))
    assert found == pytest.approx(without + 3.0 * expected, abs=1e-9)
    assert gradient[3].abs().max() == 0
    assert all(gradient[row].abs().max() > 0 for row in distinct)


def test_shares_are_whole_queries_and_gather_off_keeps_ranks_apart() -> None:
    batch = collate(examples(1, 5), negatives=2, in_batch=True)
    plan = step_batch(batch, ranks=2, gather=True)
    apart = step_batch(batch, ranks=2, gather=False)
    assert [share.start for share in plan.shares] == [0, plan.shares[0].stop]
    assert plan.shares[1].stop == len(plan.texts)
    rank_of_query = [int(row in plan.shares[1]) for row in plan.query_rows.tolist()]
    rank_of_passage = [int(row in plan.shares[1]) for row in plan.passage_rows.tolist()]
    assert rank_of_query == [0, 0, 1, 1, 1]
    crossing = torch.tensor(rank_of_query)[:, None] != torch.tensor(rank_of_passage)[None, :]
    assert not apart.allowed[crossing].any()
    assert torch.equal(apart.allowed[~crossing], plan.allowed[~crossing])
    assert plan.allowed[crossing].any()


def test_more_ranks_than_queries_leave_one_without_texts() -> None:
    batch = collate(examples(1, 2), negatives=1, in_batch=True)
    plan = step_batch(batch, ranks=3, gather=True)
    assert sorted(len(share) > 0 for share in plan.shares) == [False, True, True]


def test_a_vector_that_is_not_finite_is_refused() -> None:
    vectors = torch.from_numpy(unit_rows(3, 4))
    vectors[2, 1] = float("nan")
    with pytest.raises(
        NumericsError, match=r"loss is nan; 1 of 3 vectors are not finite.*lower the learning"
    ):
        loss_and_gradient(
            vectors,
            query_rows=torch.tensor([0]),
            passage_rows=torch.tensor([1, 2]),
            positive_Q=torch.tensor([0]),
            allowed_QC=torch.ones(1, 2, dtype=torch.bool),
            temperature=0.1,
        )
