"""Numbers and foreign text in what is printed."""

# In the place of an environment's id, where there is none.
NO_ENVIRONMENT = "no-environment"


def counted(number: int, *nouns: str, form: str = "") -> str:
    """"1 trajectory", "2 trajectories", "2 insertions or removals"; the number in Python's format `form`."""
    return f"{number:{form}} {' or '.join(noun if number == 1 else plural(noun) for noun in nouns)}"


def plural(noun: str) -> str:
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"


def harmless(text: str) -> str:
    """Text that a file may have brought, for a terminal: whatever is not printable (escape sequences, marks of direction, lone surrogates) as its escape. Line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
