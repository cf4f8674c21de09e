"""The one error that is shown to users as a sentence instead of a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: what was found, what was expected, what to do."""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """`` Did you mean "..."?`` with the nearest known name, for a message about an unknown one; empty without any.

    :param cutoff: how alike they must be, from 0 to 1
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f' Did you mean "{near[0]}"?' if near else ""
