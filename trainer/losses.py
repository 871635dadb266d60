"""The distillation losses as pure functions of tensors, one number a sample."""

import torch


def relaxed(cross_entropy: torch.Tensor, entropy: torch.Tensor, relaxation: float) -> torch.Tensor:
    """max(0, KL(p‖q) - beta·H(p)) (Eqs. 5 and 6 of the CRL paper), [B].

    `cross_entropy` is -sum p log q and `entropy` H(p), so their difference is the divergence.
    With `relaxation` 0 this is the divergence itself, not clamped: Basic of the paper.
    """
    divergence = cross_entropy - entropy
    return (divergence - relaxation * entropy).clamp_min(0) if relaxation else divergence


def neighbourhood_distillation(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of q from p and the entropy of p over each sample's K neighbours: [B], [B].

    `student` b and `teacher` a are activations [B, K] on the same rows (Eq. 3 of the CRL paper).
    """
    log_q = (student / temperature).log_softmax(dim=1)
    log_p = (teacher / temperature).log_softmax(dim=1)
    p = log_p.exp()
    return -(p * log_q).sum(dim=1), -(p * log_p).sum(dim=1)


def embedding_distance(embeddings: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    """Half the squared Euclidean distance between two embeddings of each image: [B].

    The loss of LFL (less-forgetting learning), as the CRL paper compares with it.
    """
    return (embeddings - previous).square().sum(dim=1) / 2


def leading(embeddings: torch.Tensor, dimension: int) -> torch.Tensor:
    """The first `dimension` elements of each embedding, [B, dimension]: those of a longer embedding
    that meet a shorter, older one's (Sec. 3.6 of the BCT paper)."""
    return embeddings[:, :dimension]
