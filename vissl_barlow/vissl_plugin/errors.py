"""What ends a run in one line for the user."""


class ConfigError(ValueError):
    """A config that cannot train; the message is one line for the user."""

    def __init__(self, key: str, value, remedy: str) -> None:
        super().__init__(f"config.{key}={value}: {remedy}")


class RankFailed(Exception):
    """One process of several is gone; the message names its rank."""
