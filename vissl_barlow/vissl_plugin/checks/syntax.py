"""In one line, with the quotes that are missing: a word that hydra does not read as it was meant."""

import re
import shlex
import sys

from hydra.core.override_parser.types import Quote, QuotedString

_SEVERAL = re.compile(r"Ambiguous value for argument '(.+?)'\n", re.DOTALL)
_UNFIT = re.compile(r"Error merging override (.+)", re.DOTALL)


def unreadable_word(error: BaseException) -> str | None:
    """The line for an error of hydra's about a word of the command line; None for any other.

    None too where no word names a config of this plugin's: other runs are left as VISSL has them.
    """
    if not any("config=" in word and "vissl_barlow" in word for word in sys.argv):
        return None
    if type(error).__name__ == "OverrideParseException":
        word = str(getattr(error, "override", ""))
        if "=" not in word:
            return f"{word}: hydra wants KEY=VALUE, without spaces around the sign"
        remedy = "hydra cannot read this; quote the value for the shell and for hydra"
        return f"{word}: {remedy}: {_quoted(word)}"
    if match := _SEVERAL.match(str(error)):
        word = match[1]
        key, _, value = word.partition("=")
        return (
            f"{word}: these are several values; for a list, {shlex.quote(f'{key}=[{value}]')}; for "
            f"one text with commas, {_quoted(word)}"
        )
    if match := _UNFIT.match(str(error)):
        return f"{match[1]}: a list stands there; give a list, in brackets"
    return None


def _quoted(word: str) -> str:
    """`word`, KEY=VALUE, for a shell, with its value a text to hydra, or a list of such."""
    key, _, value = word.partition("=")
    if value.startswith("["):
        entries = value.removeprefix("[").removesuffix("]").split(",")
        quoted = f"[{','.join(map(_text, entries))}]"
    else:
        quoted = _text(value)
    return shlex.quote(f"{key}={quoted}")


def _text(value: str) -> str:
    return QuotedString(value.strip("\"'"), Quote.double).with_quotes()
