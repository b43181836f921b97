"""InfoNCE over cosines, with hard and in-batch negatives; and the neighbours of a teacher, if there is one.

Shapes: Q queries, C passages, U distinct texts, D hidden size, E the teacher's dimensions.

    loss of query i = -log( exp(s_ip / t) / sum over allowed c of exp(s_ic / t) ),  s = cosine, p its positive

Paper: only "contrastive loss" (section 3.3); formula and temperature are ours, the usual ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nvembed.errors import NumericsError


def info_nce(
    queries_QD: Tensor, passages_CD: Tensor, *, positive_Q: Tensor, allowed_QC: Tensor, temperature: float
) -> Tensor:
    """Return each query's loss, (Q,) float32, or float64 for float64 input.

    Args:
        queries_QD, passages_CD: unit rows.
        positive_Q: int64, the column of each query's positive.
        allowed_QC: bool, the columns in each query's softmax, including its positive.
        temperature: divides the cosines; above 0.
    """
    dtype = torch.promote_types(queries_QD.dtype, torch.float32)
    scores_QC = queries_QD.to(dtype) @ passages_CD.to(dtype).T / temperature
    right_Q = scores_QC.gather(1, positive_Q[:, None])[:, 0]
    return scores_QC.masked_fill(~allowed_QC, -torch.inf).logsumexp(1) - right_Q


@dataclass(frozen=True)
class Guide:
    """A teacher's vectors of a step's texts, and the weight of its term beside InfoNCE."""

    vectors: Tensor  # (U, E) unit rows
    distinct: Tensor  # int64: the rows to compare, each text once
    weight: float
    temperature: float


def neighbour_divergence(vectors_UD: Tensor, teacher_UE: Tensor, *, temperature: float) -> Tensor:
    """Return how far each text's neighbours differ from the teacher's, (U,) float32 (float64 likewise).

    That is KL(teacher || student), each text's cosines to all others as a softmax at ``temperature``. Only
    cosines are compared, so the two may differ in dimensions. One text alone has no neighbours: 0.

    Ours: the paper has no teacher in training. Relational distillation (Park et al. 2019, 1904.05068), in the
    softmax form of SEED (Fang et al. 2021, 2101.04731) within the batch.
    """
    dtype = torch.promote_types(vectors_UD.dtype, torch.float32)
    if len(vectors_UD) < 2:
        return vectors_UD.to(dtype).sum(1) * 0
    others_UU = ~torch.eye(len(vectors_UD), dtype=torch.bool, device=vectors_UD.device)

    def neighbours(rows: Tensor) -> Tensor:
        scores_UU = rows.to(dtype) @ rows.to(dtype).T / temperature
        return scores_UU[others_UU].view(len(rows), -1).log_softmax(1)

    teachers, own = neighbours(teacher_UE), neighbours(vectors_UD)
    return (teachers.exp() * (teachers - own)).sum(1)


def loss_and_gradient(
    vectors_UD: Tensor,
    *,
    query_rows: Tensor,
    passage_rows: Tensor,
    positive_Q: Tensor,
    allowed_QC: Tensor,
    temperature: float,
    guide: Guide | None = None,
) -> tuple[float, Tensor]:
    """Return the mean loss of a batch and its gradient with respect to the vectors, (U, D).

    Args:
        vectors_UD: one unit row for each distinct text.
        query_rows, passage_rows: (Q,), (C,) int64, the row of each query and passage.
        guide: adds its weight times the mean ``neighbour_divergence`` of the distinct texts.

    Raises:
        NumericsError: a vector or the loss is not finite.
    """
    leaf = vectors_UD.detach().requires_grad_()
    with torch.enable_grad():
        losses_Q = info_nce(
            leaf[query_rows],
            leaf[passage_rows],
            positive_Q=positive_Q,
            allowed_QC=allowed_QC,
            temperature=temperature,
        )
        loss = losses_Q.mean()
        if guide is not None:
            apart_U = neighbour_divergence(
                leaf[guide.distinct], guide.vectors[guide.distinct], temperature=guide.temperature
            )
            loss = loss + guide.weight * apart_U.mean()
        if not torch.isfinite(loss):
            bad = int((~torch.isfinite(vectors_UD)).any(1).sum())
            raise NumericsError(
                f"the loss is {loss.item()}; {bad} of {len(vectors_UD)} vectors are not finite: the last "
                "saved state is untouched; lower the learning rate, or use float32"
            )
        (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.item(), gradient
