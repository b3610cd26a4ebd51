"""Make report.html of a run, or a picture of one metric."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from r1parallel.errors import UserError, run_command
from r1parallel.monitor.charts import save_curve
from r1parallel.monitor.metrics import METRICS_FILE
from r1parallel.monitor.report.report import write_report


def main(argv: Sequence[str]) -> None:
    """Write the page or the picture and print its path."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--run_dir", type=Path, required=True, help="output_dir of a run, or a folder of runs")
    parser.add_argument("--title", help="heading; default: the folder's name, or the metric's")
    parser.add_argument("--curve", metavar="METRIC", help="draw this metric to --output instead of the page")
    parser.add_argument("--output", type=Path, metavar="FILE.png", help="picture of --curve")
    options = parser.parse_args(argv)
    if (options.curve is None) != (options.output is None):
        raise UserError("--curve and --output go together: give both, or neither for the page")
    if options.curve is None:
        print(write_report(options.run_dir, options.title))
    else:
        title = options.title or options.curve
        save_curve(options.run_dir / METRICS_FILE, options.curve, options.output, title)
        print(options.output)


if __name__ == "__main__":
    run_command(main)
