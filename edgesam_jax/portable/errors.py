"""The exception for errors that the user can fix, and the form of its message."""

from __future__ import annotations

LONGEST = 2000  # characters of a message; longer ones come from absurd file names or values, and lose their middle


class UsageError(ValueError):
    """An error in the user's input. Its message is one line (``one_line``); commands print it and exit with code 2."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))


def one_line(text: object, longest: int = LONGEST) -> str:
    r"""Return a text as one line that is safe to print.

    File names, labels and other libraries' messages may contain line breaks, terminal sequences and characters that
    reverse the direction of writing. Everything that isn't printable is escaped as in a Python string (``\n``,
    ``\x1b``, ``\u202e``), and a text beyond ``longest`` characters loses its middle. Applying it twice changes nothing.
    """
    text = str(text)
    if len(text) > longest:
        text = f"{text[: longest // 2 - 3]} ... {text[3 - longest // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def type_text(value: object) -> str:
    """Describe a value by its type."""
    return f"a value of type {type(value).__name__}"
