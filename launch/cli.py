"""`osteojax <verb>`: finds launch/<verb>.py and runs it.

A verb's module has `add_arguments(parser)` and `run(args) -> exit status`; its docstring's first
line is the help, the rest (an example) the epilogue.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import logging
import os
import sys
from pathlib import Path

from launch.compilation import keep_compiled_programs
from osteojax import __version__
from osteojax.errors import UserError

VERBS = (
    "simulate",
    "cohort",
    "prepare",
    "inspect",
    "train",
    "evaluate",
    "export",
    "predict",
    "study",
    "benchmark",
    "compile",
    "demo",
)

CONFIGURED = ("train", "compile")
"""Verbs that take --config.FIELD=VALUE."""


def _verb_help(verb: str) -> tuple[str, str]:
    """First line and rest of a verb's docstring, read without importing the verb."""
    source = Path(__file__).with_name(f"{verb}.py").read_text(encoding="utf-8")
    doc = ast.get_docstring(ast.parse(source)) or ""
    head, _, rest = doc.strip().partition("\n")
    return head, rest.strip("\n")


def _build_parser(argv: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="osteojax", description="CT + vertebra masks + DXA table -> a model of bone density."
    )
    parser.add_argument("--version", action="version", version=f"osteojax {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        head, epilogue = _verb_help(verb)
        sub = verbs.add_parser(
            verb,
            help=head,
            description=head,
            epilog=epilogue,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if verb in argv[:1]:
            module = importlib.import_module(f"launch.{verb}")
            module.add_arguments(sub)
            if hasattr(module, "add_kind_arguments"):  # adds options that depend on other options
                module.add_kind_arguments(sub, argv[1:])
    return parser


def _parse(argv: list[str]) -> argparse.Namespace:
    """Parses the verb's arguments; this imports the verb, which Ctrl-C may interrupt."""
    parser = _build_parser(argv)
    args, rest = parser.parse_known_args(argv)
    if rest and args.verb not in CONFIGURED:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if args.verb in CONFIGURED:
        args.overrides = rest  # --config.key=value, parsed with the config
    args.command = argv
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs a verb. Exit status: 0 done, 1 something failed, 2 a wrong command line."""
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    keep_compiled_programs()  # before a verb imports JAX
    try:
        args = _parse(argv)
        return importlib.import_module(f"launch.{args.verb}").run(args)
    except UserError as error:
        print(f"osteojax {argv[0]}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"osteojax {argv[0]}: interrupted; rerun the same command to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"osteojax {argv[0]}: error: {where}{error.strerror}. Finished work is kept: "
            "free disk space or fix permissions, then rerun the same command.",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
