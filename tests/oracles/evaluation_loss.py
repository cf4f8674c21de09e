"""Slow float64 port of the loss of vox2vec's evaluation: binary cross-entropy inside the body + squared soft Dice."""

import math

import numpy as np


def evaluation_loss(logits, labels, body, known, smooth=1e-5):
    """logits (B, K, *S) of the foreground classes 1..K, labels (B, *S) int, body and known (B, *S) bool -> float"""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    total = count = 0.0
    dice = []
    for k in range(logits.shape[1]):
        overlap = squares = 0.0
        for place in np.ndindex(labels.shape):
            if not known[place]:
                continue
            g = float(labels[place] == k + 1)
            p = 1 / (1 + math.exp(-logits[(place[0], k, *place[1:])]))
            overlap += p * g
            squares += p * p + g * g
            if body[place]:
                total -= g * math.log(p) + (1 - g) * math.log(1 - p)
                count += 1
        dice.append((2 * overlap + smooth) / (squares + smooth))
    return total / max(count, 1) + 1 - sum(dice) / len(dice)
