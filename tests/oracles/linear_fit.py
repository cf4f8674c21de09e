"""Weighted multinomial logistic regression by Newton's method in float64, written out row by row."""
import numpy as np


def newton_logistic(features, labels, weights, num_classes, l2, steps=60):
    """Minimise sum_i w_i CE_i / sum_i w_i + l2 / 2 |W|^2, W on standardised channels -> W (K, C), b (K) unfolded."""
    x = features.astype(np.float64)
    mean, std = x.mean(0), x.std(0)
    x = np.concatenate([(x - mean) / std, np.ones((len(x), 1))], axis=1)
    rows = weights.astype(np.float64) / weights.astype(np.float64).sum()
    n, c = x.shape
    theta = np.zeros((num_classes, c))
    penalty = np.tile(np.append(np.full(c - 1, l2), 0.0), num_classes)
    for _ in range(steps):
        gradient = penalty * theta.ravel()
        hessian = np.diag(penalty)
        for i in range(n):
            logits = theta @ x[i]
            p = np.exp(logits - logits.max())
            p /= p.sum()
            gradient += rows[i] * np.kron(p - np.eye(num_classes)[labels[i]], x[i])
            hessian += rows[i] * np.kron(np.diag(p) - np.outer(p, p), np.outer(x[i], x[i]))
        theta -= np.linalg.lstsq(hessian, gradient, rcond=1e-12)[0].reshape(num_classes, c)
        if np.abs(gradient).max() < 1e-12:
            break
    weight = theta[:, :-1] / std
    return weight, theta[:, -1] - weight @ mean
