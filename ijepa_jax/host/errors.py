"""Errors of libraries, as messages tell them."""


def one_line(error: BaseException, most: int | None = None) -> str:
    """What an error says in one line, of at most so many letters; its kind where it says nothing."""
    return (" ".join(str(error).split()) or type(error).__name__)[:most]
