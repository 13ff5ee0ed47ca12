"""The pretraining text: token ids, read in windows."""
import math
import os

import numpy as np
import torch
import torch.nn.functional as F

from data import UserError, read_tokens


def rows_that_fit(most, T, config):
    """How many rows of T tokens, up to `most`, have float32 logits of 256 MiB at most."""
    return max(1, min(most, 2 ** 28 // (4 * T * config.vocab_size)))


class Text:
    """A text of token ids, read in windows of `block` tokens.

    A window begins where a document begins. So a prompt, which stands at position 0, looks like
    the text that was trained on. Raises UserError if the text is shorter than a window.
    """

    def __init__(self, path, vocab, block, device):
        self.tokens, self.block, self.device = read_tokens(path, vocab), block, device
        ends = torch.from_numpy((self.tokens[:-1] == vocab.eos).nonzero()[0])
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends + 1])
        self.starts = starts[starts + block <= len(self.tokens)]
        if not len(self.starts):
            raise UserError(f"{path} has only {len(self.tokens)} tokens, less than one block of "
                            f"{block}: give more text, or a smaller --size")

    def windows(self, starts):
        rows = [self.tokens[i:i + self.block].astype("int64") for i in starts.tolist()]
        return torch.from_numpy(np.stack(rows)).to(self.device)

    def batch(self, rows, rng):
        """(rows, block) windows, drawn by the generator `rng`."""
        return self.windows(self.starts[torch.randint(len(self.starts), (rows,), generator=rng)])

    @torch.no_grad()
    def loss(self, model, rows=256):
        """Next-token loss on `rows` windows spread through the text, in nats a token.

        → (mean, standard error over windows; 0 of one window)
        """
        spread = torch.linspace(0, len(self.starts) - 1, min(rows, len(self.starts))).long()
        size, losses = rows_that_fit(32, self.block, model.config), []
        for starts in self.starts[spread].split(size):
            x = self.windows(starts)
            logits = model(x)[:, :-1].float().transpose(1, 2)
            losses.append(F.cross_entropy(logits, x[:, 1:], reduction="none").mean(1))
        losses = torch.cat(losses)
        std = losses.std(correction=min(1, len(losses) - 1))
        return losses.mean().item(), std.item() / math.sqrt(len(losses))


def read_texts(run, block):
    """The pretraining text and the held-out text of a run's data folder → two Texts."""
    paths = [os.path.join(run.folder, name) for name in ("train.bin", "val.bin")]
    return [Text(path, run.vocab, block, run.device) for path in paths]
