"""The plugin's tasks: what is refused beside them."""

import pytest
from vissl_runs import resolve

import vissl_barlow
from vissl_barlow.vissl_plugin.errors import ConfigError

vissl_barlow.register()

DIGITS = "pretrain/vissl_barlow/digits_quickstart"


@pytest.mark.parametrize(
    ("override", "task"),
    [
        ("config.TRAINER.TASK_NAME=self_supervision_task", "self_supervision_task"),
        ("config.TRAINER.TASK_NAME=no_such_task", "no_such_task"),
        ("config.MODEL.SHARDED_DDP_SETUP.USE_SDP=true", "self_supervision_sdp_task"),
    ],
)
def test_a_barlow_section_under_another_task_is_refused(tmp_path, override, task):
    with pytest.raises(
        ConfigError, match=f"^config.TRAINER.TASK_NAME={task}: .* barlow_evaluation_task"
    ):
        resolve(tmp_path, DIGITS, override)
