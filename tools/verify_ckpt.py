"""Verify a checkpoint: against another one, whatever form, names and cut each has, or against its manifests.

Exit code 0: equal; 1: they differ, or something is damaged; 2: they cannot be compared.
"""

import argparse
from collections.abc import Sequence

from r1parallel.checkpoint.check_manifests import check_manifests, write_missing_manifests
from r1parallel.checkpoint.command_line import add_workers_flag, read_layout
from r1parallel.checkpoint.compare import compare_checkpoints
from r1parallel.checkpoint.comparing.findings import Finding, Report
from r1parallel.checkpoint.formats.dtypes import WEIGHT_DTYPES
from r1parallel.checkpoint.reading.source import open_source
from r1parallel.errors import UserError, run_command


def main(argv: Sequence[str]) -> None:
    """Parse the command line, compare, and exit with 1 where something differs."""
    args = _parser().parse_args(argv)
    _check(args)
    if args.manifest:
        written = write_missing_manifests(args.a, args.transform_process_num)
        print(f"wrote {written.new} manifests in {args.a}, left {written.kept} as they were")
        return
    report = _compare(args) if args.b else _verify(args)
    print(report.verdict)
    if report.findings:
        raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="verify_ckpt.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("a", metavar="A", help="checkpoint: a file, a folder, or a folder of rank_N")
    parser.add_argument("b", metavar="B", nargs="?", help="another one; without it A is compared with its manifests")
    for side in ("a", "b"):
        text = f"how {side.upper()} is cut; default: as the strategy.ckpt in it says"
        parser.add_argument(f"--strategy_{side}", default="None", help=text)
        text = f"where a rank folder of {side.upper()} has several files: which, as actor"
        parser.add_argument(f"--prefix_{side}", default="", help=text)
    parser.add_argument("--dtype", choices=sorted(WEIGHT_DTYPES), help="cast A to it before comparing")
    parser.add_argument("--manifest", action="store_true", help="write a manifest beside each file of A that has none")
    parser.add_argument("--logits", nargs="?", const="", metavar="PROMPT", help="also compare what both models compute")
    add_workers_flag(parser)
    return parser


def _check(args: argparse.Namespace) -> None:
    for_two = {
        "--dtype": args.dtype,
        "--logits": args.logits is not None,
        "--strategy_b": args.strategy_b != "None",
        "--prefix_b": args.prefix_b,
    }
    for flag, given in for_two.items():
        if given and not args.b:
            raise UserError(f"{flag}: is for two checkpoints; give another one after {args.a}")
    if args.manifest and args.b:
        raise UserError(f"--manifest: is for one checkpoint at a time; leave {args.b} out")


def _verify(args: argparse.Namespace) -> Report:
    report = check_manifests(args.a, read_layout(args.strategy_a), args.prefix_a, args.transform_process_num)
    print(report.body)
    return report


def _compare(args: argparse.Namespace) -> Report:
    first = open_source(args.a, read_layout(args.strategy_a), args.prefix_a)
    second = open_source(args.b, read_layout(args.strategy_b), args.prefix_b)
    report = compare_checkpoints(first, second, args.dtype, args.transform_process_num)
    print(report.body)
    if args.logits is None:
        return report
    if report.kinds & {"missing", "shape", "damaged"}:
        print("logits  not compared: A and B are not two whole models of the same sizes")
        return report
    from r1parallel.generation.compare import compare_logits  # takes seconds to import

    line, agree = compare_logits(first, second, args.logits, args.dtype)
    print(f"logits  {line}")
    return report if agree else report.with_finding(Finding("logits", line))


if __name__ == "__main__":
    run_command(main)
