"""The mend of VISSL's extraction of features."""

import vissl_barlow

vissl_barlow.register()


from vissl_barlow.vissl_plugin.mends import extraction  # noqa: E402


def test_features_of_an_earlier_run_on_more_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction.dist, "get_world_size", lambda: 2)
    names = [f"rank{rank}_chunk0_train_res5avg_inds.npy" for rank in range(4)]
    for rank, left in ((1, {0, 2, 3}), (0, {1})):
        for name in names:
            (tmp_path / name).touch()
        monkeypatch.setattr(extraction.dist, "get_rank", lambda rank=rank: rank)
        extraction._remove_stale_features(str(tmp_path))
        assert {path.name for path in tmp_path.iterdir()} == {names[rank] for rank in left}
