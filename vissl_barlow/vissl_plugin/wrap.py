"""Replaces a function of VISSL's by one that gets the original as its first argument."""

import functools


def wrap(owner, name: str):
    """Replaces `owner.name` by the decorated function, which gets the original as first argument."""

    def install(replacement):
        original = getattr(owner, name)
        if hasattr(original, "mended_by"):
            return replacement
        wrapper = functools.wraps(original)(functools.partial(replacement, original))
        # A plain function, so that it binds `self` when `owner` is a class.
        bound = functools.wraps(original)(lambda *args, **kwargs: wrapper(*args, **kwargs))
        bound.mended_by = replacement
        setattr(owner, name, bound)
        return replacement

    return install
