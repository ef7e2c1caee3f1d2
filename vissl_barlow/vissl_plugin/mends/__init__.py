"""Faults of VISSL 0.1.6, one file per part of VISSL; `apply()` mends them all, once per process."""

from vissl_barlow.vissl_plugin.mends import (
    checkpoints,
    data,
    extraction,
    knn_tool,
    launcher,
    logging_hooks,
    svm_tools,
    untrusted_files,
)

MENDS = (
    checkpoints.checkpoints_written_atomically,
    checkpoints.newest_checkpoint_linked_atomically,
    checkpoints.resume_from_the_newest_whole_checkpoint,
    checkpoints.saving_outlives_the_disk,
    checkpoints.broadcast_checkpoints_without_copying_bytewise,
    logging_hooks.logs_outlive_the_disk,
    logging_hooks.tensorboard_with_several_learning_rates,
    logging_hooks.tensorboard_log_dir,
    logging_hooks.profiler_output_folder,
    logging_hooks.profiler_stops_once,
    data.data_paths_without_label_paths,
    data.labels_without_code,
    svm_tools.svm_average_precision,
    svm_tools.svm_low_shot_average,
    svm_tools.svm_results_per_class,
    svm_tools.svms_trained_anew_for_new_features,
    svm_tools.failed_children_fail_the_tool,
    svm_tools.low_shot_samples,
    knn_tool.nearest_neighbours_anywhere,
    extraction.features_extracted_on_cpus,
    untrusted_files.pickles_without_code,
    untrusted_files.yaml_without_code,
    untrusted_files.copies_stay_inside,
    launcher.lock_checkpoint_folder,
    launcher.end_processes_together,
    launcher.set_process_group_timeout,
)


def apply() -> None:
    """Applies every mend to the imported VISSL."""
    for mend in MENDS:
        mend()
