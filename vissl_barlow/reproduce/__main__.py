"""`python -m vissl_barlow.reproduce NAME`: lists, runs, resumes or submits a table or a figure."""

import argparse
import sys

from vissl_barlow.reproduce import ablations, report, transfer


def main(arguments: list[str] | None = None) -> int:
    """Runs what the command line asks for; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m vissl_barlow.reproduce", description=__doc__)
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name in transfer.table_names():
        table = names.add_parser(name, help=transfer.load_table(name).title)
        transfer.add_arguments(table, name)
        table.set_defaults(run=transfer.run)
    for name in ablations.study_names():
        study = names.add_parser(name, help=ablations.load_study(name, "imagenet")[0]["title"])
        ablations.add_arguments(study)
        study.set_defaults(run=ablations.run)
    summary = names.add_parser("report", help="tables, figures and a page of all runs in a folder")
    report.add_arguments(summary)
    # Overrides may stand between the options, where a parser of its own would not look for them.
    options, others = parser.parse_known_args(arguments)
    unknown = [argument for argument in others if argument.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.overrides = [*options.overrides, *others]
    try:
        if options.name == "report":
            return report.run(options)
        status = options.run(options.name, options)
        if not options.dry_run:
            report.report_one(options.name, options)
        return status
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
