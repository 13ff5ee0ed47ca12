"""The pretraining text: token ids, read in windows."""
import functools
import os

import torch
import torch.nn.functional as F

from data import UserError, read_tokens


def rows_that_fit(most, T, config):
    """How many rows of T tokens, up to `most`, have float32 logits of 256 MiB at most."""
    return max(1, min(most, 2 ** 28 // (4 * T * config.vocab_size)))


class Text:
    """A text of token ids, read in windows of block + 1 tokens: the last is only predicted.

    After its end the text begins again.

    A window begins at a random token, or at the start of that token's document if that is less
    than half a block before. So a window moves by less than half a block, and each token is seen
    between half and 1.5 times as often as the average one, however long its document is. And where
    documents are short, most windows begin where one begins: a prompt, which stands at position 0,
    looks like the text that was trained on. Raises UserError if the text is shorter than a window.
    """

    def __init__(self, path, vocab, block, device):
        self.tokens, self.block, self.device = read_tokens(path, vocab), block, device
        ends = torch.from_numpy((self.tokens[:-1] == vocab.eos).nonzero()[0])
        self.documents = torch.cat([torch.zeros(1, dtype=torch.int64), ends + 1])
        if len(self.tokens) < block:
            raise UserError(f"{path} has only {len(self.tokens)} tokens, less than one block of "
                            f"{block}: give more text, or a smaller --size")

    def starts(self, tokens):
        """Where the windows of these tokens (positions in the text) begin."""
        documents = self.documents[torch.searchsorted(self.documents, tokens, right=True) - 1]
        return torch.where(tokens - documents < self.block // 2, documents, tokens)

    def windows(self, starts):
        index = (starts[:, None] + torch.arange(self.block + 1)) % len(self.tokens)
        return torch.from_numpy(self.tokens[index.numpy()].astype("int64")).to(self.device)

    def batch(self, rows, rng):
        """(rows, block + 1) windows, drawn by the generator `rng`."""
        tokens = torch.randint(len(self.tokens), (rows,), generator=rng)
        return self.windows(self.starts(tokens))

    def share_seen(self, n):
        """The share of the text's tokens that n drawn windows have to predict, on average."""
        return 1 - (1 - self.block / len(self.tokens)) ** n

    @functools.cached_property
    def consecutive(self):
        """Windows that have each token, the first one aside, once among those that count.

        → (starts (n,), in each window the position of the first token that counts (n,))
        """
        starts, firsts, token = [], [], 1
        while token < len(self.tokens):
            # not the token before it: a window's first token has nothing that it follows from
            last = len(self.tokens) - self.block - 1
            start = min(self.starts(torch.tensor(token - 1)).item(), last)
            starts.append(start)
            firsts.append(token - start)
            token = start + self.block + 1
        return torch.tensor(starts), torch.tensor(firsts)

    @torch.no_grad()
    def loss(self, model, rows=256):
        """Next-token loss in nats a token, on each token once.

        Of a long text only `rows` windows, spread through it.
        → (mean, standard error over windows; 0 of one window)
        """
        starts, firsts = self.consecutive
        spread = torch.linspace(0, len(starts) - 1, min(rows, len(starts))).long()
        size, losses, counts = rows_that_fit(32, self.block, model.config), [], []
        for part in spread.split(size):
            x = self.windows(starts[part])
            logits = model(x[:, :-1]).float().transpose(1, 2)
            counted = torch.arange(1, self.block + 1) >= firsts[part, None]
            found = F.cross_entropy(logits, x[:, 1:], reduction="none").cpu()
            losses.append(torch.where(counted, found, 0.0).sum(1))
            counts.append(counted.sum(1))
        losses, counts = torch.cat(losses), torch.cat(counts)
        mean = losses.sum() / counts.sum()
        error = (losses - mean * counts).square().sum().sqrt() / counts.sum()
        return mean.item(), error.item()


def read_texts(run, block):
    """The pretraining text and the held-out text of a run's data folder → two Texts."""
    paths = [os.path.join(run.folder, name) for name in ("train.bin", "val.bin")]
    return [Text(path, run.vocab, block, run.device) for path in paths]
