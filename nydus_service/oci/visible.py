"""Foreign text for people: what an image's author wrote must not control a terminal or forge a line. Pure."""


def visible(text: str, *, keep: str = "\n\t") -> str:
    """The text with an escape in the place of each character that is not printable, such as "\\x1b".

    These are control characters, marks that change the direction of text, line separators and surrogates.

    Args:
        keep: the characters that stay although they are not printable; "" for text on one line.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode()
        for each in text
    )


def on_one_line(text: str) -> str:
    return visible(text, keep="")
