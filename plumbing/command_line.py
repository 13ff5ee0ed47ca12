"""
The command line. A script's settings are a dataclass, and each of its fields is a flag.

    @dataclass
    class Config(Common):
        steps: int = flag(2400, "optimiser steps")
"""
import argparse
import difflib
import os
import sys
from dataclasses import dataclass, field, fields

from data import ROOT, UserError, read_json

POSITIVE = ["steps", "batch", "epochs", "ppo_epochs", "episodes", "minibatches", "iterations",
            "eval_every", "max_new_tokens", "lr", "round"]
WORDS = {int: "a whole number", float: "a number"}


def flag(default, help):
    """A field of a settings dataclass: its default, and its line in --help."""
    return field(default=default, metadata={"help": help})


@dataclass
class Common:
    """The flags that every stage has."""
    data: str = flag("village", "a folder under data/, or a path")
    out: str = flag("", "folder for checkpoints and logs; empty: out/<data>")
    seed: int = flag(1337, "of everything drawn at random")
    device: str = flag("auto", "cuda, mps or cpu; auto: the first of these that there is")
    dtype: str = flag("auto", "float32 or bfloat16; auto: bfloat16 where the device is fast at it")
    size: str = flag("tiny", "a name in model.py's SIZES; smoke shrinks the whole run as well")
    max_new_tokens: int = flag(48, "longest response, in sampling")
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


def value_of(kind):
    """What turns a flag's text into an int or a float, or says what was expected."""
    def convert(text):
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {WORDS[kind]}, found {text!r}") from None
    return convert


def parse(cls, doc, smoke=None, argv=None):
    """The command line → a config of dataclass `cls`. Raises UserError for a mistake in it.

    smoke: what --size=smoke sets in place of the defaults. The data folder's settings.json comes
    before a default, smoke before that, and a flag that is given before everything.
    """
    parser = Parser(doc)
    for f in fields(cls):
        kind = type(f.default)
        how = {"default": argparse.SUPPRESS,
               "help": f.metadata["help"].replace("%", "%%") + f" ({f.default})"}
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
    for name in POSITIVE:
        if getattr(config, name, 1) <= 0:
            raise UserError(f"--{name}={getattr(config, name)} must be above 0")
    if getattr(config, "micro_batch_size", 0) < 0:
        raise UserError(f"--micro_batch_size={config.micro_batch_size} can't be negative")
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


def entry(main):
    """Run a script's main(). A user's mistake is one sentence and exit code 1."""
    try:
        main()
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
