"""Command line: `python -m vissl_barlow.detection --help`."""

from __future__ import annotations

import sys

from torch.multiprocessing import ProcessRaisedException

from vissl_barlow.stop_signals import stopped_by_ctrl_c

INSTALL = (
    "Detectron2 is not installed. It is built against the PyTorch in use: python -m pip install"
    " --no-build-isolation git+https://github.com/facebookresearch/detectron2 (docs/detection.md has"
    " what it needs)"
)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status; what a user can mend is reported in one line for each fault."""
    try:
        from vissl_barlow.detection import trainer
        from vissl_barlow.detection.machines import UnlikeMachines
    except ImportError as error:
        absent = error.name == "detectron2"
        reason = INSTALL if absent else f"Detectron2 does not import: {error}"
        print(f"error: {reason}", file=sys.stderr)
        return 1
    args = trainer.argument_parser().parse_args(arguments)
    try:
        try:
            cfg = trainer.prepare(args)
        except (ValueError, OSError) as error:
            for fault in str(error).splitlines():
                print(f"error: {fault}", file=sys.stderr)
            return 1
        try:
            trainer.launch_run(args, cfg)
        except ProcessRaisedException as error:
            kind, _, message = str(error).strip().rpartition("\n")[2].partition(": ")
            if not kind.endswith(f".{UnlikeMachines.__name__}"):
                raise
            print(f"error: {message}", file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        raise stopped_by_ctrl_c() from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
