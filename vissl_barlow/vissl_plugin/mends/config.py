"""vissl/utils/hydra_config.py: the file with a run's resolved config."""

from pathlib import Path

from vissl.utils import hydra_config
from vissl.utils.checkpoint import (
    get_checkpoint_folder,
    get_resume_checkpoint,
    is_training_finished,
)

from vissl_barlow.atomic_files import write_text_atomically
from vissl_barlow.provenance import has_left_something
from vissl_barlow.run_files import CONFIG_FILE, NEXT_CONFIG_FILE
from vissl_barlow.vissl_plugin.wrap import of_barlow_config, wrap


def keep_config_until_replaced() -> None:
    """vissl/utils/hydra_config.py:60: `save_attrdict_to_disk(config)`.

    A fault of VISSL 0.1.6: a start that is to replace the run in its folder writes its config over that
    of the run, and where it then fails, the run's results stand beside another run's config. It is kept
    under a name of its own until the start has left something (`provenance.note_left`).
    """

    @wrap(hydra_config, "save_attrdict_to_disk", applies=of_barlow_config)
    def save(original, cfg):
        folder = Path(get_checkpoint_folder(cfg))
        config, following = folder / CONFIG_FILE, folder / NEXT_CONFIG_FILE
        following.unlink(missing_ok=True)
        before = config.read_text() if config.exists() and _replaces_a_run(cfg, folder) else None
        original(cfg)
        if before is not None:
            config.rename(following)
            write_text_atomically(config, before)


def _replaces_a_run(cfg, folder: Path) -> bool:
    return (
        has_left_something(folder)
        and not is_training_finished(cfg, checkpoint_folder=str(folder))
        and get_resume_checkpoint(cfg, checkpoint_folder=str(folder)) is None
    )
