"""VISSL's profiler with a folder to write to, stopped once."""

import os

from vissl.hooks.profiling_hook import ProfilingHook

from vissl_barlow.vissl_plugin.hooks.logs import tolerate_failed_logs


class BarlowProfilingHook(ProfilingHook):
    """Makes PROFILING.OUTPUT_FOLDER, which nobody does in VISSL 0.1.6 (profiling_hook.py:46), and
    leaves the profiler alone once it has been stopped: VISSL's `on_end` (profiling_hook.py:94) stops
    it a second time, which torch refuses since 1.8.1. A full disk costs what was measured."""

    def __init__(self, profiling_config) -> None:
        super().__init__(profiling_config)
        os.makedirs(self.output_folder, exist_ok=True)
        self.written = False

    def _dump_memory_stats(self, iteration: int) -> None:
        with tolerate_failed_logs():
            super()._dump_memory_stats(iteration)

    def _dump_runtime_profiling_results(self, stop_profiler: bool = False) -> None:
        if not self.written:
            self.written = stop_profiler
            with tolerate_failed_logs():
                super()._dump_runtime_profiling_results(stop_profiler)

    def _runtime_tracking(self, iteration: int, task) -> None:
        if not self.written:
            super()._runtime_tracking(iteration, task)
