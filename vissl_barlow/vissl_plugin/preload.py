"""What multiprocessing's forkserver imports, once: each loader worker is then a fork that has it.

Without it every worker of every epoch is a new interpreter that imports torch, VISSL and the plugin.
"""

import warnings

from vissl_barlow.vissl_plugin.register import register

with warnings.catch_warnings(action="ignore"):  # the process that starts workers has shown them
    register()
