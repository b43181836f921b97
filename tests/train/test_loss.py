import math

import numpy as np
import pytest
import torch
from torch import Tensor
from training import examples

from conftest import unit_rows
from nvembed.data.collate import collate
from nvembed.errors import NumericsError
from nvembed.train.loss import (
    Guide,
    Target,
    Terms,
    distillation,
    info_nce,
    loss_and_gradient,
    neighbour_divergence,
    quantised,
    spread_out,
)
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
        terms=Terms(temperature=0.1),
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
    }
    distinct = torch.tensor([0, 1, 2, 4])
    without, _ = loss_and_gradient(vectors, **plain, terms=Terms(0.1))
    guided = Terms(0.1, distinct=distinct, guide=Guide(teacher, 3.0, 0.2))
    found, gradient = loss_and_gradient(vectors, **plain, terms=guided)
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
            terms=Terms(temperature=0.1),
        )


def test_distillation_against_a_double_loop() -> None:
    student, teacher = (torch.from_numpy(unit_rows(6, dim, dim)).double() for dim in (8, 5))
    projection = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).double()
    for width in (8, 3):  # a Matryoshka size uses the first columns
        cosines, squares = [], []
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
            image = [sum(projection[e, d].item() * s[d] for d in range(width)) for e in range(5)]
            length = math.sqrt(sum(x * x for x in image))
            cosines.append(1 - sum(a * b for a, b in zip(image, t, strict=True)) / length)
            squares.append(sum((a - b) ** 2 for a, b in zip(image, t, strict=True)))
        cosine, squared = distillation(student[:, :width], teacher, projection)
        np.testing.assert_allclose(cosine.numpy(), cosines, atol=1e-6)
        np.testing.assert_allclose(squared.numpy(), squares, atol=1e-6)


def test_spread_out_against_a_double_loop() -> None:
    rows = torch.from_numpy(unit_rows(7, 3)).double()
    cosines = [float(rows[i] @ rows[j]) for i in range(7) for j in range(7) if i != j]
    second = sum(c * c for c in cosines) / len(cosines)
    expected = (sum(cosines) / len(cosines)) ** 2 + max(0.0, second - 1 / 3)
    assert spread_out(rows).item() == pytest.approx(expected, abs=1e-6)
    assert spread_out(torch.eye(4)).item() == 0
    assert spread_out(rows[:1]).item() == 0
    assert spread_out(rows[:1].repeat(4, 1)).item() == pytest.approx(1 + 2 / 3, abs=1e-6)


def test_quantised_outputs_and_their_straight_gradient() -> None:
    rows = torch.from_numpy(unit_rows(4, 6)).double().requires_grad_()
    for output in ("int8", "binary"):
        shown = quantised(rows, output)
        for row, quantised_row in zip(rows.tolist(), shown.tolist(), strict=True):
            codes = [
                float(round(127 * x / max(map(abs, row)))) if output == "int8" else math.copysign(1, x)
                for x in row
            ]
            length = math.sqrt(sum(code * code for code in codes))
            np.testing.assert_allclose(quantised_row, [code / length for code in codes], atol=1e-12)
        weights = torch.arange(24).view(4, 6).double()
        (gradient,) = torch.autograd.grad((shown * weights).sum(), rows)
        assert torch.equal(gradient, weights)
    assert quantised(rows, "float32") is rows


def test_all_terms_are_averaged_over_sizes_and_outputs() -> None:
    vectors = torch.nn.functional.normalize(torch.from_numpy(unit_rows(5, 6)).double(), dim=1)
    teachers = [torch.from_numpy(unit_rows(5, dim, dim)).double() for dim in (4, 3)]
    projections = [
        torch.randn(dim, 6, generator=torch.Generator().manual_seed(dim)).double().requires_grad_()
        for dim in (4, 3)
    ]
    plain = {
        "query_rows": torch.tensor([0, 1]),
        "passage_rows": torch.tensor([2, 3]),
        "positive_Q": torch.tensor([0, 1]),
        "allowed_QC": torch.ones(2, 2, dtype=torch.bool),
    }
    targets = tuple(
        Target(teacher, projection, 2.0, 0.5)
        for teacher, projection in zip(teachers, projections, strict=True)
    )
    terms = Terms(
        0.1, info_nce=0.7, spread_out=0.3, dims=(4,), outputs=("float32", "binary"), targets=targets,
        guide=Guide(teachers[0], 1.5, 0.2),
    )  # fmt: skip

    def value(at: Tensor) -> float:
        total = 0.0
        for dim in (6, 4):
            for output in ("float32", "binary"):
                rows = at[:, :dim] / at[:, :dim].norm(dim=1, keepdim=True)
                if output == "binary":
                    rows = rows.sign() / math.sqrt(dim)
                right, allowed = plain["positive_Q"], plain["allowed_QC"]
                total += 0.7 * float(np.mean(double_loop(rows[:2], rows[2:4], right, allowed, 0.1)))
                total += 0.3 * spread_out(rows).item()
                total += 1.5 * float(np.mean(slow_divergence(rows, teachers[0], 0.2)))
                for teacher, projection in zip(teachers, projections, strict=True):
                    cosine, squared = distillation(rows, teacher, projection.detach())
                    total += 2.0 * cosine.mean().item() + 0.5 * squared.mean().item()
        return total / 4

    loss, gradient = loss_and_gradient(vectors, **plain, terms=terms)
    assert loss == pytest.approx(value(vectors), abs=1e-9)
    assert gradient[:, 4:].abs().max() > 0
    for projection in projections:  # the rows that are binary do not depend on it: plain finite differences
        assert projection.grad is not None
        step = torch.zeros_like(projection)
        step[1, 2] = 1e-6
        slopes = []
        for sign in (1, -1):
            with torch.no_grad():
                projection += sign * step
            slopes.append(value(vectors))
            with torch.no_grad():
                projection -= sign * step
        assert projection.grad[1, 2].item() == pytest.approx((slopes[0] - slopes[1]) / 2e-6, abs=1e-6)
