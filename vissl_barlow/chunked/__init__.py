"""One step on a batch whose activations do not fit into memory: the same gradient, in pieces.

The loss of Barlow Twins is over the whole batch, so gradient accumulation, which adds the gradients of
one loss per piece, trains another objective. `backward` takes one loss over all rows. Needs neither
VISSL nor anything else of this package but `distributed` and `sync_batch_norm`.
"""

from vissl_barlow.chunked.stages import check_stages
from vissl_barlow.chunked.step import BATCH_NORM_MODES, backward, piece_sizes

__all__ = ["BATCH_NORM_MODES", "backward", "check_stages", "piece_sizes"]
