"""A folder's vocabulary: text ↔ token ids, and the chat template."""
import base64
import hashlib
import os

import tiktoken

from data import UserError, read_json, read_lines, turns_of

LARGEST = 2 ** 16       # ids of a vocabulary
SPECIAL = ["<|user|>", "<|assistant|>", "<|endoftext|>", "<|pad|>"]


class Vocab:
    """A tiktoken.Encoding, and the chat template in token ids.

    `size` counts the special tokens. `eos` ends a response and a document. `pad` only fills up
    batches. `hash` is stored in every checkpoint, so that no model runs on another vocabulary.
    """

    def __init__(self, folder):
        path = os.path.join(folder, "vocab.json")
        spec = read_json(path)
        if not isinstance(spec, dict) or not isinstance(spec.get("special"), dict):
            raise UserError(f'{path}: expected an object with "special", see data/README.md')
        self.special = spec["special"]
        if lacking := sorted(set(SPECIAL) - set(self.special)):
            raise UserError(f'{path}: "special" lacks {", ".join(lacking)}')
        self.user, self.assistant, self.eos, self.pad = (self.special[name] for name in SPECIAL)
        # a prefix of " " gives a text's first word the token that it has within a sentence
        self.prefix = spec.get("prefix", "")

        if spec.get("name") == "gpt2":
            from data.gpt2 import GPT2_PATTERN, gpt2_ranks      # imports torch, which is slow
            pattern, ranks = GPT2_PATTERN, gpt2_ranks(folder)
        else:
            pattern, ranks = spec.get("pattern"), read_ranks(os.path.join(folder, "vocab.tiktoken"))
        if not pattern:
            raise UserError(f'{path}: "pattern" is missing: the regular expression that cuts text '
                            f"into words")
        ids = [*ranks.values(), *self.special.values()]
        if len(set(ids)) < len(ids):
            raise UserError(f'{path}: two tokens of the rank file and "special" have the same id')
        try:
            self.encoding = tiktoken.Encoding("data", pat_str=pattern, mergeable_ranks=ranks,
                                              special_tokens=self.special)
        except Exception as e:      # the errors of tiktoken's Rust code have no common class
            raise UserError(f"{path}: tiktoken refuses this vocabulary: {e}") from None
        self.size = max(ids) + 1
        if self.size > LARGEST:
            raise UserError(f"{path}: ids up to {max(ids):,}, but a .bin file has room for two "
                            f"bytes a token: {LARGEST:,} ids at most")
        content = (pattern, self.prefix, sorted(ranks.items()), sorted(self.special.items()))
        self.hash = hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def encode(self, text):
        """Text → ids. A special token that is written in the text stays text."""
        return self.encoding.encode_ordinary(self.prefix + text)

    def decode(self, ids):
        """Ids → text, without special tokens."""
        special = set(self.special.values())
        text = self.encoding.decode([i for i in ids if i not in special])
        return text.removeprefix(self.prefix)

    def prompt(self, prompt):
        """A prompt, a string or turns that end with the user's → ids, ending in <|assistant|>."""
        ids = []
        for turn in turns_of(prompt):
            if turn["role"] == "user":
                ids += [self.user, *self.encode(turn["content"]), self.assistant]
            else:
                ids += [*self.encode(turn["content"]), self.eos]
        return ids

    def response(self, text):
        """A response → ids, ending in <|endoftext|>."""
        return [*self.encode(text), self.eos]


def read_ranks(path):
    """A rank file → {token bytes: rank}.

    tiktoken has a function for this, but it caches by path and could return another folder's file.
    """
    ranks = {}
    for n, line in read_lines(path):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token)] = int(rank)
        except ValueError:
            raise UserError(f"{path}, line {n}: expected a token in base64 and its rank, as "
                            f"tiktoken writes them") from None
    if not ranks:
        raise UserError(f"{path} is empty; see data/README.md")
    return ranks
