"""The CRL paper's losses on one process, dense, in float64, written from the paper alone."""

from torch.nn import functional as F


def classification(embeddings, labels, new_rows, first):
    """Eq. 1."""
    return F.cross_entropy(embeddings @ new_rows.T, labels - first)


def lfl(embeddings, old_embeddings):
    return ((embeddings - old_embeddings) ** 2).sum(1).mean() / 2


def lwf(embeddings, old_rows, old_embeddings, old_model_rows, tau):
    """Eq. 2."""
    p = F.softmax(old_embeddings @ old_model_rows.T / tau, 1)
    return -(p * F.log_softmax(embeddings @ old_rows.T / tau, 1)).sum(1).mean()


def fkd(embeddings, old_rows, old_embeddings, old_model_rows, tau, k, beta):
    """Eqs. 3 to 7, one sample after the other."""
    total = 0.0
    for phi, old_phi in zip(embeddings, old_embeddings, strict=True):
        a = old_model_rows @ old_phi
        ranked = sorted(range(len(a)), key=lambda j: (-a[j].item(), j))
        chosen = ranked[: len(a) if k is None else k]
        p = F.softmax(a[chosen] / tau, 0)
        q = F.softmax(old_rows[chosen] @ phi / tau, 0)
        divergence = (p * (p.log() - q.log())).sum()
        margin = beta * -(p * p.log()).sum()
        slack = divergence - margin
        total = total + (slack.clamp_min(0) if beta else slack)
    return total / len(embeddings)


def margin_target(margin, cosine, norms, norm_mean, norm_deviation):
    """The target's cosine with its margin, as the papers write it."""
    theta = cosine.acos()
    if margin.kind == "cosface":
        return cosine - margin.margin
    if margin.kind == "arcface":
        return (theta + margin.margin).cos()
    if margin.kind == "combined":
        return (margin.m1 * theta + margin.m2).cos() - margin.m3
    if margin.kind == "adaface":
        quality = (norms - norm_mean) / ((norm_deviation + 1e-3) / margin.concentration)
        quality = quality.clamp(-1, 1)
        angle, added = -margin.margin * quality, margin.margin * quality + margin.margin
        return (theta + angle).cos() - added
    return cosine


def margin_softmax(embeddings, labels, rows, margin, norm_mean=20.0, norm_deviation=100.0):
    """Each sample's loss over dense `rows`, labels counted from 0."""
    if margin.kind == "softmax":
        return F.cross_entropy(embeddings @ rows.T, labels, reduction="none")
    norms = embeddings.detach().norm(dim=1)
    cosine = F.normalize(embeddings) @ F.normalize(rows).T
    own = cosine.gather(1, labels[:, None])[:, 0]
    moved = margin_target(margin, own, norms, norm_mean, norm_deviation)
    logits = margin.scale * cosine.scatter(1, labels[:, None], moved[:, None])
    return F.cross_entropy(logits, labels, reduction="none")
