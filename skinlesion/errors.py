"""The one exception that means: the input is at fault, not the program."""


class InputError(ValueError):
    """Bad input from the user: one line that says what is wrong, where, and what to do about it."""


def name_some(names: list[str], *, shown: int = 5) -> str:
    """Join the first few names for an error message, and count the rest.

    Args:
        names: what to name, in the order to show.
        shown: how many are spelled out.
    """
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest:,} more" if rest > 0 else "")
