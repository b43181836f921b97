"""InfoNCE over cosines, with hard and in-batch negatives.

Shapes: Q queries, C passages, D hidden size.

    loss of query i = -log( exp(s_ip / t) / sum over allowed c of exp(s_ic / t) ),  s = cosine, p its positive

Paper: says only "contrastive loss" (section 3.3); formula and temperature are ours, as is usual.
"""

import torch
from torch import Tensor

from nvembed.errors import NumericsError


def info_nce(
    queries_QD: Tensor, passages_CD: Tensor, *, positive_Q: Tensor, allowed_QC: Tensor, temperature: float
) -> Tensor:
    """Return each query's loss, (Q,) float32 (float64 where the input is).

    Args:
        queries_QD, passages_CD: unit rows.
        positive_Q: int64, the column of each query's positive.
        allowed_QC: bool, the columns of each query's softmax, its positive among them.
        temperature: by which cosines are divided, above 0.
    """
    dtype = torch.promote_types(queries_QD.dtype, torch.float32)
    scores_QC = queries_QD.to(dtype) @ passages_CD.to(dtype).T / temperature
    right_Q = scores_QC.gather(1, positive_Q[:, None])[:, 0]
    return scores_QC.masked_fill(~allowed_QC, -torch.inf).logsumexp(1) - right_Q


def loss_and_gradient(
    vectors_UD: Tensor,
    *,
    query_rows: Tensor,
    passage_rows: Tensor,
    positive_Q: Tensor,
    allowed_QC: Tensor,
    temperature: float,
) -> tuple[float, Tensor]:
    """Return the mean loss of a batch and its gradient with respect to the vectors, (U, D).

    Args:
        vectors_UD: one unit row for each distinct text.
        query_rows, passage_rows: (Q,), (C,) int64, the row of each query and passage.

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
        if not torch.isfinite(loss):
            bad = int((~torch.isfinite(vectors_UD)).any(1).sum())
            raise NumericsError(
                f"the loss is {loss.item()}; {bad} of {len(vectors_UD)} vectors are not finite: the last "
                "saved state is untouched; lower the learning rate, or use float32"
            )
        (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.item(), gradient
