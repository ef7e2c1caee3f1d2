import logging

import pytest

from vissl_barlow.loss import choose_form


@pytest.mark.parametrize(
    "n, d, world_size, form",
    [
        (256, 8192, 1, "gram"),
        (2048, 8192, 1, "gram"),
        (64, 65536, 1, "gram"),
        (2048, 8192, 32, "gram"),
        (4096, 1024, 1, "correlation"),
        (4096, 256, 8, "correlation"),
    ],
)
def test_auto_takes_the_cheaper_form_and_says_so_once(caplog, n, d, world_size, form):
    choose_form.cache_clear()
    with caplog.at_level(logging.INFO, logger="vissl_barlow.loss"):
        assert [choose_form(n, d, world_size) for _ in range(3)] == [form] * 3
    (record,) = caplog.records
    assert f"{form} form for N={n}, D={d} on {world_size} process" in record.getMessage()
