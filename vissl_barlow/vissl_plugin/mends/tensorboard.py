"""vissl/utils/tensorboard.py: where TensorBoard's files go.

Not in the plugin's TensorBoard hook: VISSL has opened the file before a task is given its hooks, and
an empty one would stay behind.
"""

import os

from vissl.utils import tensorboard

from vissl_barlow.vissl_plugin.wrap import of_barlow_config, wrap


def write_tensorboard_where_told() -> None:
    """vissl/utils/tensorboard.py:48: `tensorboard_dir = f"{checkpoint_folder}/tb_logs"`.

    A fault of VISSL 0.1.6: HOOKS.TENSORBOARD_SETUP.LOG_DIR is never read. Its default, ".", keeps
    VISSL's place; anything else is the folder, with EXPERIMENT_LOG_DIR below it.
    """

    @wrap(tensorboard, "get_tensorboard_dir", applies=of_barlow_config)
    def get_tensorboard_dir(original, cfg):
        setup = cfg.HOOKS.TENSORBOARD_SETUP
        if setup.LOG_DIR in ("", "."):
            return original(cfg)
        folder = os.path.join(setup.LOG_DIR, setup.EXPERIMENT_LOG_DIR)
        os.makedirs(folder, exist_ok=True)
        return folder
