"""The paper's tables and figures as commands: `python -m vissl_barlow.reproduce --help`."""
