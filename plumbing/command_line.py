"""
The command line. A script's settings are a dataclass, and each of its fields is a flag.

    @dataclass
    class Config(Common):
        steps: int = flag(2400, "optimiser steps", "[1, inf)")
"""
import argparse
import difflib
import os
import sys
from dataclasses import dataclass, field, fields

from data import ROOT, UserError, read_json

WORDS = {int: "a whole number", float: "a number"}


def flag(default, help, within=""):
    """A field of a settings dataclass: its default, its line in --help, and a number's range."""
    return field(default=default, metadata={"help": help, "within": within})


def lies_in(value, within):
    """Whether a number is in a range such as "[0, 1)" or "0 or [2, inf)". NaN is in none."""
    for part in filter(None, within.split(" or ")):
        low, _, high = part.strip("[]()").partition(", ")
        above = value > float(low) if part[0] == "(" else value >= float(low)
        below = value < float(high or low) if part[-1] == ")" else value <= float(high or low)
        if above and below:
            return True
    return not within


@dataclass
class Common:
    """The flags that every stage has."""
    data: str = flag("village", "a folder under data/, or a path")
    out: str = flag("", "folder for checkpoints and logs; empty: out/<data>")
    seed: int = flag(1337, "of everything drawn at random", "[0, 1e13]")
    device: str = flag("auto", "cuda, mps or cpu; auto: the first of these that there is")
    dtype: str = flag("auto", "float32 or bfloat16; auto: bfloat16 where the device is fast at it")
    size: str = flag("tiny", "a name in model.py's SIZES; smoke shrinks the whole run as well")
    max_new_tokens: int = flag(48, "longest response, in sampling", "[1, inf)")
    compile: bool = flag(False, "torch.compile each block; on a CPU this needs a C++ compiler")
    base: str = flag("", "in place of OUT/pretrain.pt: another pretrain.pt, gpt2, gpt2-medium, …, "
                         "or a folder in GPT-2's layout")
    fresh: str = flag("", "--fresh makes this stage again, --fresh=all those before it too")


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are UserErrors, and which names the nearest flag."""

    def __init__(self, doc):
        super().__init__(description=doc.strip(), usage="%(prog)s [--flag=value ...]",
                         allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        raise UserError(f"{message} (--help lists all flags)")

    def parse_args(self, argv=None):
        args, unknown = self.parse_known_args(argv)
        if unknown:
            name = unknown[0].split("=")[0].strip("-").replace("-", "_")
            hint = nearest(name, [a.dest for a in self._actions], "--")
            self.error(f"unknown flag {unknown[0]}{hint}")
        return args


def nearest(word, words, prefix=""):
    """The end of a message about a word that does not exist: which one may be meant."""
    near = difflib.get_close_matches(word, words, 1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def value_of(kind, within=""):
    """What turns a flag's text into an int or a float, or says what was expected."""
    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {WORDS[kind]}, found {text!r}") from None
        if not lies_in(value, within):
            raise argparse.ArgumentTypeError(f"{value} is not in its range, {within}")
        return value
    return convert


def parse(cls, doc, smoke=None, argv=None):
    """The command line → a config of dataclass `cls`. Raises UserError for a mistake in it.

    smoke: what --size=smoke sets in place of the defaults. The data folder's settings.json comes
    before a default, smoke before that, and a flag that is given before everything.
    """
    parser = Parser(doc)
    for f in fields(cls):
        kind = type(f.default)
        within = f.metadata["within"] and f", in {f.metadata['within']}"
        how = {"default": argparse.SUPPRESS,
               "help": f.metadata["help"].replace("%", "%%") + f" ({f.default}{within})"}
        if f.name == "fresh":
            how |= {"nargs": "?", "const": "stage", "choices": ["stage", "all"]}
        elif kind is bool:
            how |= {"action": argparse.BooleanOptionalAction}
        else:
            how |= {"type": value_of(kind) if kind in WORDS else kind, "metavar": ""}
        parser.add_argument("--" + f.name, **how)
    given = vars(parser.parse_args(argv))

    settings = folder_settings(given.get("data", Common.data), cls)
    if given.get("size", settings.get("size")) == "smoke":
        settings |= smoke or {}
    config = cls(**settings | given)
    config.data = os.path.normpath(config.data)
    if os.path.dirname(config.data) == "data":
        config.data = os.path.basename(config.data)
    ending = "-smoke" if config.size == "smoke" else ""
    config.out = config.out or os.path.join("out", os.path.basename(config.data) + ending)
    config.given = set(given)
    for f in fields(cls):
        value, within = getattr(config, f.name), f.metadata["within"]
        if not lies_in(value, within):
            raise UserError(f"--{f.name}={value} is not in its range, {within}")
    return config


def folder_settings(data, cls):
    """What the data folder's settings.json sets: {stage or "all": {flag: value}}."""
    folder = data if os.path.isdir(data) else os.path.join(ROOT, "data", data)
    path = os.path.join(folder, "settings.json")
    if not os.path.exists(path):
        return {}
    settings = read_json(path)
    stage = os.path.splitext(os.path.basename(sys.modules[cls.__module__].__file__))[0]
    sections = ([settings.get(name, {}) for name in ("all", stage)]
                if isinstance(settings, dict) else [None])
    if not all(isinstance(section, dict) for section in sections):
        raise UserError(f'{path}: expected {{stage or "all": {{flag: value}}}}')
    defaults = {f.name: f.default for f in fields(cls)}
    merged = sections[0] | sections[1]
    for name, value in merged.items():
        if type(value) is not type(defaults.get(name)):
            raise UserError(f"{path}: {name} = {value!r} is no flag of this script, or not of its "
                            f"type (--help lists them)")
    return merged


def typed(question):
    """A line that the user types, without the blanks around it; None at the end of input.

    Bytes that are no text, such as half a letter, become U+FFFD.
    """
    if sys.stdin is None:       # closed from the start
        return None
    if hasattr(sys.stdin, "reconfigure") and sys.stdin.errors != "replace":
        sys.stdin.reconfigure(errors="replace")
    try:
        return input(question).strip()
    except (EOFError, OSError, RuntimeError):       # RuntimeError: it is closed
        return None


def coloured(text, x):
    """In a terminal green or red by the sign of x, bold if |x| is over 1; plain with NO_COLOR."""
    if not (sys.stdout and sys.stdout.isatty()) or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{int(abs(x) > 1)};{32 if x > 0 else 31}m{text}\033[0m"


def entry(main):
    """Run a script's main(). A user's mistake is one sentence and exit code 1.

    main may return a function, which is called when main's memory is free → the exit code.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):      # a closed one is None
            stream.reconfigure(errors="replace")    # no letter may end a run
    try:
        if then := main():
            sys.exit(then())
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(1)
    except RuntimeError as e:
        if type(e).__name__ != "OutOfMemoryError":      # torch's; to import torch takes seconds
            raise
        print("error: not enough memory: give a smaller --micro_batch_size or --size",
              file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)
