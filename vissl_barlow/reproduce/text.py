"""Text from folders that anybody may have named, as a terminal, a page or Markdown takes it safely."""

import html
import textwrap


def printable(text: str) -> str:
    """`text` on one line, with what a terminal or an editor would obey (escapes, line breaks, reversed
    writing) or no encoding can hold written out, as `\\x1b`."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def printable_lines(text: str) -> str:
    """`printable`, line by line."""
    return "\n".join(map(printable, text.split("\n")))


def in_markdown(text: str) -> str:
    """`printable`, without tags, links, pictures or cells of its own."""
    escaped = html.escape(printable(text), quote=False)
    return escaped.replace("|", "\\|").replace("](", "]\\(")


def in_picture(text: str, width: int = 120, lines: int | None = None) -> str:
    """`printable`, in lines of at most `width` characters, and without formulas: matplotlib takes what
    stands between dollar signs for one."""
    wrapped = textwrap.fill(printable(text), width, max_lines=lines, placeholder=" ...")
    return wrapped.replace("$", r"\$")
