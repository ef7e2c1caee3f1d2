"""`python -m vissl_barlow.reproduce NAME`: lists, runs, resumes or submits a table or a figure."""

import argparse
import sys

from vissl_barlow.reproduce import commands, own, report
from vissl_barlow.reproduce.studies import IMAGENET, load_study, study_names
from vissl_barlow.reproduce.transfer import OWN, load_table, table_names
from vissl_barlow.stop_signals import stopped_by_ctrl_c


def main(arguments: list[str] | None = None) -> int:
    """Runs what the command line asks for; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m vissl_barlow.reproduce", description=__doc__)
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name in table_names():
        table = names.add_parser(name, help=load_table(name).title)
        commands.add_table_arguments(table, name)
        table.set_defaults(run=commands.run_table)
    for name in study_names():
        study = names.add_parser(name, help=load_study(name, IMAGENET).title)
        commands.add_study_arguments(study)
        study.set_defaults(run=commands.run_study)
    evaluation = names.add_parser(OWN, help="a checkpoint on a folder of your own images")
    own.add_arguments(evaluation)
    evaluation.set_defaults(run=own.run)
    summary = names.add_parser("report", help="tables, figures and a page of all runs in a folder")
    report.add_arguments(summary)
    # Overrides may stand between the options, where a parser of its own would not look for them.
    options, others = parser.parse_known_args(arguments)
    unknown = [argument for argument in others if argument.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.overrides = [*options.overrides, *others]
    commands.take_own_images(options)
    try:
        if options.name == "report":
            return report.run(options)
        status = options.run(options.name, options)
        return status if options.dry_run else max(status, report.report_one(options.name, options))
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        raise stopped_by_ctrl_c() from None


if __name__ == "__main__":
    sys.exit(main())
