"""The losses of a step: InfoNCE over cosines, distillation from teachers, and a regulariser.

Shapes: Q queries, C passages, U distinct texts, D hidden size, E the teacher's dimensions.

    loss of query i = -log( exp(s_ip / t) / sum over allowed c of exp(s_ic / t) ),  s = cosine, p its positive

Paper: only "contrastive loss" (section 3.3); formula and temperature are ours, the usual ones.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from nvembed.errors import NumericsError
from nvembed.train.recipe import Output


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
    """A teacher whose neighbours are learnt, and the weight of this term."""

    vectors: Tensor  # (U, E) unit rows
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


@dataclass(frozen=True)
class Target:
    """A teacher whose vectors are learnt through a linear projection, and the weights of both distances."""

    vectors: Tensor  # (U, E) unit rows
    projection: Tensor  # (E, D), trained with the model
    cosine: float
    squared: float


def distillation(vectors_UD: Tensor, target_UE: Tensor, projection_ED: Tensor) -> tuple[Tensor, Tensor]:
    """Return each text's distances to the teacher, ``1 - cos(P s, t)`` and ``|P s - t|^2``, (U,) each.

    A student's vector that is shorter than the projection uses its first columns, so that all Matryoshka
    sizes share one projection.

    Ours: embedding distillation through a projection from student to teacher, as in LEAF (Vujanic et al.
    2025, 2509.12539). The projected vector is not normalised before the squared distance.
    """
    dtype = torch.promote_types(vectors_UD.dtype, torch.float32)
    student_UE = vectors_UD.to(dtype) @ projection_ED.to(dtype)[:, : vectors_UD.shape[1]].T
    teacher_UE = target_UE.to(dtype)
    return 1 - F.cosine_similarity(student_UE, teacher_UE), (student_UE - teacher_UE).square().sum(1)


def spread_out(vectors_UD: Tensor) -> Tensor:
    """Return ``M1^2 + max(0, M2 - 1/D)``, M1 and M2 the mean cosine and mean squared cosine of all pairs.

    Both are 0 and 1/D for vectors that are spread evenly over the sphere. One text alone: 0.

    Paper: Zhang et al. 2017, 1708.06320 (global orthogonal regularisation). Differs: a query and its positive
    are not left out; they are one pair in U.
    """
    dtype = torch.promote_types(vectors_UD.dtype, torch.float32)
    count, dim = vectors_UD.shape
    if count < 2:
        return vectors_UD.to(dtype).sum() * 0
    others_UU = ~torch.eye(count, dtype=torch.bool, device=vectors_UD.device)
    cosines = (vectors_UD.to(dtype) @ vectors_UD.to(dtype).T)[others_UU]
    return cosines.mean().square() + (cosines.square().mean() - 1 / dim).clamp(min=0)


def quantised(vectors_UD: Tensor, output: Output) -> Tensor:
    """Return the unit vectors that an output of fewer bits stands for; the gradient passes straight through.

    int8 is ``round(127 v / max|v|)``, binary the sign of each number, as the server sends them; both are
    normalised again.
    """
    if output == "float32":
        return vectors_UD
    plain = vectors_UD.detach()
    if output == "int8":
        codes = (127 * plain / plain.abs().amax(1, keepdim=True)).round()
    else:
        codes = torch.where(plain > 0, 1.0, -1.0).to(plain.dtype)
    return vectors_UD + (F.normalize(codes, dim=1) - plain)


@dataclass(frozen=True)
class Terms:
    """The terms of a step's loss, and the forms of the vectors over which they are averaged.

    ``info_nce``, ``spread_out``: weights. ``dims``: Matryoshka sizes beside the whole vector. ``distinct``:
    int64, the rows that have each text once; None for all.
    """

    temperature: float
    info_nce: float = 1.0
    spread_out: float = 0.0
    dims: tuple[int, ...] = ()
    outputs: tuple[Output, ...] = ("float32",)
    distinct: Tensor | None = None
    guide: Guide | None = None
    targets: tuple[Target, ...] = ()


def loss_and_gradient(
    vectors_UD: Tensor,
    *,
    query_rows: Tensor,
    passage_rows: Tensor,
    positive_Q: Tensor,
    allowed_QC: Tensor,
    terms: Terms,
) -> tuple[float, Tensor]:
    """Return the loss of a batch and its gradient with respect to the vectors, (U, D).

    The gradients of projections that require one are added to their ``grad``.

    Args:
        vectors_UD: one unit row for each distinct text.
        query_rows, passage_rows: (Q,), (C,) int64, the row of each query and passage.

    Raises:
        NumericsError: a vector or the loss is not finite.
    """
    leaf = vectors_UD.detach().requires_grad_()
    projections = [target.projection for target in terms.targets if target.projection.requires_grad]
    with torch.enable_grad():
        forms = list(product((leaf.shape[1], *terms.dims), terms.outputs))
        losses = []
        for dim, output in forms:
            shown = leaf if dim == leaf.shape[1] else F.normalize(leaf[:, :dim], dim=1)
            shown = quantised(shown, output)
            losses.append(_of_texts(shown, terms))
            if terms.info_nce:
                losses_Q = info_nce(
                    shown[query_rows],
                    shown[passage_rows],
                    positive_Q=positive_Q,
                    allowed_QC=allowed_QC,
                    temperature=terms.temperature,
                )
                losses[-1] = terms.info_nce * losses_Q.mean() + losses[-1]
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        if not torch.isfinite(loss):
            bad = int((~torch.isfinite(vectors_UD)).any(1).sum())
            raise NumericsError(
                f"the loss is {loss.item()}; {bad} of {len(vectors_UD)} vectors are not finite: the last "
                "saved state is untouched; lower the learning rate, or use float32"
            )
        gradient, *others = torch.autograd.grad(loss, [leaf, *projections])
    for projection, value in zip(projections, others, strict=True):
        projection.grad = value if projection.grad is None else projection.grad + value
    return loss.item(), gradient


def _of_texts(vectors_UD: Tensor, terms: Terms) -> Tensor:
    """Return the sum of the terms that compare distinct texts with a teacher or with each other."""
    rows = slice(None) if terms.distinct is None else terms.distinct
    own_UD = vectors_UD[rows]
    total = own_UD.sum() * 0
    if terms.guide is not None:
        guide = terms.guide
        apart_U = neighbour_divergence(own_UD, guide.vectors[rows], temperature=guide.temperature)
        total = total + guide.weight * apart_U.mean()
    for target in terms.targets:
        cosine_U, squared_U = distillation(own_UD, target.vectors[rows], target.projection)
        total = total + target.cosine * cosine_U.mean() + target.squared * squared_U.mean()
    if terms.spread_out:
        total = total + terms.spread_out * spread_out(own_UD)
    return total
