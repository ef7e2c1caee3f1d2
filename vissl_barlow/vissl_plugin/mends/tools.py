"""VISSL's tools as modules: they run as `__main__`, or are imported under their name."""

import sys


def tool_modules(name: str) -> list:
    """One of VISSL's tools where this process runs or has imported it, else nothing to mend."""
    main = sys.modules["__main__"]
    is_main = (getattr(main, "__file__", None) or "").endswith(f"tools/{name}.py")
    imported = sys.modules.get(f"tools.{name}")
    return [module for module in (is_main and main, imported) if module]


def running_tool(*names: str) -> str | None:
    """Which of VISSL's tools `names` this process runs, or has imported; None if it is none of them."""
    return next((name for name in names if tool_modules(name)), None)
