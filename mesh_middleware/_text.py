"""Text of others in lines that people read."""

from __future__ import annotations


def one_line(text: str) -> str:
    """`text` with everything escaped that does not print.

    Such as line ends, which forge entries of a log, what controls terminals, and what turns the
    direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def gist(text: str) -> str:
    """The first 200 characters of what somebody said, on one line."""
    return " ".join(text.split())[:200] or "(no text)"
