"""Tells a collapse of the embeddings from the monitor's numbers."""

import logging


class CollapseWarning:
    """Warns of each kind of collapse once.

    Config (`config.BARLOW`): `COLLAPSED_STD` and `COLLAPSED_RANK`, below which the embeddings carry
    nothing; an untrained network is far above both.
    """

    def __init__(self, settings) -> None:
        self.settings = settings
        self.known: set[str] = set()

    def check(self, entry: dict) -> None:
        """Takes the entry of a log step, as `barlow.jsonl` has it."""
        if entry["embedding_std_mean"] < self.settings.COLLAPSED_STD:
            problem = "the embeddings are constant"
        elif entry["effective_rank_embedding"] < self.settings.COLLAPSED_RANK:
            problem = "the embeddings lie on a line"
        else:
            return
        if problem in self.known:
            return
        self.known.add(problem)
        logging.warning(
            "collapse at step %d: %s (spread %.1e, effective rank %.1f). Likely causes: a "
            "redundancy weight near 0 (config.LOSS.*.lambda_), a batch of nearly equal images, "
            "or a learning rate that has thrown the weights away (the loss jumped before)",
            entry["iteration"],
            problem,
            entry["embedding_std_mean"],
            entry["effective_rank_embedding"],
        )
