"""Refuses counts that are no whole numbers, or too small or too large to be meant."""

from vissl_barlow.vissl_plugin.checks.common import Refusals, value_at, world_size
from vissl_barlow.vissl_plugin.errors import ConfigError

# Keys of VISSL's, and the least that each can be.
_COUNTS = {
    "OPTIMIZER.num_epochs": 1,
    "DATA.TRAIN.BATCHSIZE_PER_REPLICA": 1,
    "DATA.TEST.BATCHSIZE_PER_REPLICA": 1,
    "DATA.TRAIN.DATA_LIMIT": -1,
    "DATA.TEST.DATA_LIMIT": -1,
    "DISTRIBUTED.NUM_NODES": 1,
    "DISTRIBUTED.NUM_PROC_PER_NODE": 1,
    "SEED_VALUE": 0,
}
# numpy's; VISSL seeds it with (SEED_VALUE + rank) num_epochs (vissl/utils/misc.py:172).
_SEEDS = 2**32


def check_counts(cfg) -> None:
    """Raises ConfigError for such values; of each key the default has taken a wrong type's place."""
    refusals = Refusals()
    for key, least in _COUNTS.items():
        value = value_at(cfg, key)
        if value is None or (isinstance(value, int) and value >= least):
            continue
        with refusals:
            raise ConfigError(key, value, f"set a whole number of at least {least}")
    refusals.raise_all()
    seed, most = cfg.SEED_VALUE, _SEEDS // cfg.OPTIMIZER.num_epochs - world_size(cfg)
    if seed > most:
        raise ConfigError(
            "SEED_VALUE",
            seed,
            f"times config.OPTIMIZER.num_epochs={cfg.OPTIMIZER.num_epochs}, as VISSL seeds with, it is "
            f"more than numpy takes; set at most {most}",
        )
