"""The ``ssl.probe`` block: the linear probe that watches a pretraining, its numbers and what they may be."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as fields_of
from typing import Any

from nnunet_ssl import fields


@dataclass(frozen=True)
class ProbeSettings:
    """dataset: id or name of a labelled, preprocessed dataset. every: epochs between measurements.

    plans, configuration: under which it is preprocessed (None: those of the pretraining). cases: labelled cases to fit
    on, held_out: cases to measure on, both drawn by `seed`; or lists of case identifiers. balance, l2, max_iter: see
    ``nnunet_ssl.nnunet.linear_fit.fit_linear``; per_class, background, max_windows: see ``collect_voxels`` there.
    step: of the sliding window, in patches.
    """

    dataset: int | str
    every: int = 10
    cases: int | list[str] = 3
    held_out: int | list[str] = 4
    plans: str | None = None
    configuration: str | None = None
    balance: float = 0.75
    l2: float = 1e-4
    max_iter: int = 100
    per_class: int = 2000
    background: int = 20000
    max_windows: int = 48
    step: float = 0.5
    seed: int = 0

    @classmethod
    def parse(cls, block: Mapping[str, Any]) -> ProbeSettings:
        """Raises ValueError for an unknown key (naming the nearest), a missing dataset and a value that will not do."""
        known = [field.name for field in fields_of(cls)]
        for key in block:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"probe has the unknown key {key!r}.{hint} Known: {', '.join(known)}")
        if "dataset" not in block:
            raise ValueError('probe names no dataset; expected {"dataset": ID, "every": EPOCHS, ...}')
        settings = cls(**block)
        fields.check(settings, RULES, "probe.")
        return settings


def _rules() -> dict[str, fields.Rule]:
    """What each field may be."""
    names = fields.list_of(fields.text(), distinct=True)
    some = fields.Rule(lambda value: names.test(value) and len(value) > 0, f"{names.expected}, at least one")
    groups = [
        (fields.whole(1), "every max_iter per_class background max_windows"),
        (fields.either(fields.whole(1), some), "cases held_out"),
        (fields.or_none(fields.text()), "plans configuration"),
    ]
    return {
        **{name: rule for rule, names_of in groups for name in names_of.split()},
        "dataset": fields.either(fields.whole(0), fields.text()),
        "balance": fields.number(0.0, 1.0),
        "l2": fields.number(0.0),
        "step": fields.number(0.0, 1.0, above=True),
        "seed": fields.whole(0),
    }


RULES = _rules()
