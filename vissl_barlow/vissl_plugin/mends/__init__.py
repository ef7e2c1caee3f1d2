"""What VISSL 0.1.6 does wrong where it has no door, one file per part of VISSL; `apply()` mends it.

Three mends act in every run of VISSL's, because current numpy needs them: `svm_tools`' average
precision and low-shot average, and `meters`' mean average precision. All others leave runs without a
`BARLOW` section alone (see `wrap`).
"""

from vissl_barlow.vissl_plugin.mends import (
    batch_norm,
    checkpoints,
    config,
    data,
    extraction,
    knn_tool,
    launcher,
    logs,
    meters,
    svm_tools,
    tensorboard,
    untrusted_files,
)

MENDS = (
    checkpoints.write_checkpoints_atomically,
    checkpoints.link_newest_checkpoint_atomically,
    checkpoints.resume_from_newest_whole_checkpoint,
    checkpoints.broadcast_checkpoints_as_one_buffer,
    logs.write_logs_when_possible,
    logs.leave_the_screen_to_people,
    config.keep_config_until_replaced,
    tensorboard.write_tensorboard_where_told,
    batch_norm.know_our_batch_norm,
    data.accept_data_paths_without_label_paths,
    data.load_labels_without_code,
    data.read_images_as_barlow_folder_does,
    svm_tools.compute_svm_average_precision,
    svm_tools.average_svm_low_shot_classes,
    meters.compute_mean_average_precision,
    meters.gather_scores_of_unequal_numbers,
    svm_tools.report_svm_results_per_class,
    svm_tools.train_svms_anew_for_new_features,
    svm_tools.fail_with_failed_children,
    svm_tools.draw_low_shot_samples,
    knn_tool.find_nearest_neighbours_anywhere,
    extraction.extract_features_anywhere,
    untrusted_files.store_svms_without_pickle,
    untrusted_files.keep_copies_inside,
    launcher.lock_checkpoint_folder,
    launcher.end_processes_together,
    launcher.end_by_ctrl_c,
    launcher.set_process_group_timeout,
    launcher.meet_at_a_port_of_the_jobs_own,
    launcher.submit_to_slurm_what_it_takes,
)


def apply() -> None:
    """Applies every mend to the imported VISSL; again, it is without effect."""
    for mend in MENDS:
        mend()
