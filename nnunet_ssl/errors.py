"""The one error that is shown to users as a sentence instead of a traceback."""


class UserError(Exception):
    """Something the user can mend: what was found, what was expected, what to do."""
