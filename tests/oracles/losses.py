"""The losses as their papers write them: loops over rows in float64, no matrix tricks."""

import numpy as np


def info_nce(z_a, z_b, temperature):
    """Losses of the N pairs."""
    z_a, z_b = np.asarray(z_a, float), np.asarray(z_b, float)
    n = len(z_a)
    losses = np.zeros(n)
    for own, other in ((z_a, z_b), (z_b, z_a)):
        for i in range(n):
            logits = [own[i] @ own[j] / temperature for j in range(n) if j != i]
            logits += [own[i] @ other[j] / temperature for j in range(n)]
            largest = max(logits)
            log_sum = largest + np.log(sum(np.exp(s - largest) for s in logits))
            losses[i] += (log_sum - own[i] @ other[i] / temperature) / 2
    return losses


def vicreg(z_a, z_b, eps):
    z_a, z_b = np.asarray(z_a, float), np.asarray(z_b, float)
    n, d = z_a.shape
    terms = {"similarity": ((z_a - z_b) ** 2).mean(), "variance": 0.0, "covariance": 0.0}
    for z in (z_a, z_b):
        mean = [sum(z[i, k] for i in range(n)) / n for k in range(d)]
        cov = np.zeros((d, d))
        for j in range(d):
            for k in range(d):
                cov[j, k] = sum((z[i, j] - mean[j]) * (z[i, k] - mean[k]) for i in range(n)) / (n - 1)
        terms["variance"] += sum(max(0.0, 1 - np.sqrt(cov[k, k] + eps)) for k in range(d)) / d / 2
        terms["covariance"] += sum(cov[j, k] ** 2 for j in range(d) for k in range(d) if j != k) / d / 2
    return terms


def barlow_twins(z_a, z_b, lambda_off, eps=1e-5):
    z_a, z_b = ((z - z.mean(0)) / np.sqrt(z.var(0) + eps) for z in (np.asarray(z_a, float), np.asarray(z_b, float)))
    n, d = z_a.shape
    loss = 0.0
    for i in range(d):
        for j in range(d):
            c = sum(z_a[k, i] * z_b[k, j] for k in range(n)) / n
            loss += (c - 1) ** 2 if i == j else lambda_off * c**2
    return loss
