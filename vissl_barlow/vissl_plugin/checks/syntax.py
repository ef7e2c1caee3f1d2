"""A line for each word of the command line that hydra cannot read as it was meant, with its quotes."""

import re
import shlex
import sys

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException

_SEVERAL = "Ambiguous value for argument "
_UNFIT = re.compile(r"Error merging override (.+)", re.DOTALL)


def unreadable_words(error: BaseException) -> list[str]:
    """The lines for an error of hydra's about words of the command line; none for any other.

    None too where no word names a config of this plugin's: other runs are left as VISSL has them.
    """
    words = sys.argv[1:]
    if not any("config=" in word and "vissl_barlow" in word for word in words):
        return []
    if isinstance(error, OverrideParseException) or str(error).startswith(_SEVERAL):
        return [line for line in map(_problem, words) if line]
    match = _UNFIT.match(str(error)) if isinstance(error, ConfigCompositionException) else None
    return [f"{match[1]}: a list stands there; give a list, in brackets"] if match else []


def _problem(word: str) -> str | None:
    try:
        several = OverridesParser.create().parse_override(word).is_sweep_override()
    except HydraException:
        if "=" not in word:
            return f"{word}: hydra wants KEY=VALUE, without spaces around the sign"
        remedy = "hydra cannot read this; quote the value for the shell and for hydra"
        return f"{word}: {remedy}: {quoted(word)}"
    if not several:
        return None
    key, _, value = word.partition("=")
    return (
        f"{word}: these are several values; for a list, {shlex.quote(f'{key}=[{value}]')}; for one "
        f"text with commas, {quoted(word)}"
    )


def quoted(word: str) -> str:
    """`word`, KEY=VALUE, for a shell, with its value a text to hydra, or a list of such."""
    key, _, value = word.partition("=")
    if value.startswith("["):
        entries = value.removeprefix("[").removesuffix("]").split(",")
        text = f"[{','.join(map(_text, entries))}]"
    else:
        text = _text(value)
    return shlex.quote(f"{key}={text}")


def _text(value: str) -> str:
    return QuotedString(value.strip("\"'"), Quote.double).with_quotes()
