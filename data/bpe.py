"""
Byte-pair encoding (Sennrich et al. 2016; over bytes, Radford et al. 2019): a vocabulary of one's
own.

All different words stand in one array of token ids, linked to their neighbours. Each pair of
tokens has its count and its places. A merge visits the places of one pair, and changes the counts
of the pairs beside them. So the time depends on how much is merged, not on how long a word is.
"""
import collections
import heapq

import numpy as np

END = 0xffff        # the id between two words, and at places that a merge has emptied


class Words:
    """The words as token ids, and the pairs of tokens in them. counts: {word: how often}."""

    def __init__(self, counts):
        words = [word.encode("utf-8", "replace") for word in counts]
        content = b"\xff".join([b"", *words, b""])      # UTF-8 has no byte 0xff
        self.ids = np.frombuffer(content, np.uint8).astype(np.uint16)
        self.ids[self.ids == 0xff] = END
        self.weights = np.repeat([0, *counts.values()], [1, *(len(word) + 1 for word in words)])
        places = np.arange(len(self.ids), dtype=np.int32)
        self.previous, self.next = places - 1, places + 1
        self.count, self.places = collections.Counter(), collections.defaultdict(list)
        self.heap = []      # (−count, pair); the count may have become smaller since
        for a in range(256):
            where = np.flatnonzero(self.ids == a).astype(np.int32)
            for b, weight, some in self.groups(where, self.ids[where + 1]):
                self.add((a, b), weight, some)

    def groups(self, places, ids):
        """Yields (id, summed weight, places) of the places that have the same id beside them."""
        order = ids.argsort(kind="stable")      # of 16 bits: a radix sort
        places, ids = places[order], ids[order]
        bounds = [0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1).tolist(), len(ids)]
        if len(places):
            sums = np.add.reduceat(self.weights[places], bounds[:-1]).tolist()
            for i, j, weight, x in zip(bounds, bounds[1:], sums, ids[bounds[:-1]].tolist()):
                if x != END:
                    yield x, weight, places[i:j]

    def add(self, pair, weight, places):
        self.count[pair] += weight
        self.places[pair].append(places)
        heapq.heappush(self.heap, (-self.count[pair], pair))

    def best(self):
        """The pair that is there most often, as two ids; of several, the one of smaller ids."""
        while self.heap:
            count, pair = heapq.heappop(self.heap)
            if -count == self.count[pair]:
                return pair
            if self.count[pair]:
                heapq.heappush(self.heap, (-self.count[pair], pair))
        return None

    def merge(self, a, b, new):
        """Make the pair (a, b) the token `new`, from left to right in each word."""
        left = np.sort(np.concatenate(self.places.pop((a, b))))
        left = left[(self.ids[left] == a) & (self.ids[self.next[left]] == b)]
        if a == b:      # of a run of n overlapping places, the 1st, 3rd, 5th, …
            begins = np.append(True, left[1:] != self.next[left[:-1]])
            n = np.arange(len(left))
            left = left[(n - np.maximum.accumulate(n * begins)) % 2 == 0]
        right, before = self.next[left], self.previous[left]
        # where two of the pairs touch, the place before the second is the end of the first
        before = before[np.append(True, before[1:] != right[:-1])]
        for x, weight, places in self.groups(before, self.ids[before]):
            self.count[x, a] -= weight
            self.add((x, new), weight, places)
        for x, weight, _ in self.groups(right, self.ids[self.next[right]]):
            self.count[b, x] -= weight
        self.ids[left], self.ids[right] = new, END
        self.next[left] = self.next[right]
        self.previous[self.next[left]] = left
        for x, weight, places in self.groups(left, self.ids[self.next[left]]):
            self.add((new, x), weight, places)
        del self.count[a, b]


def train_bpe(counts, size, bar=None):
    """{word: how often} → up to `size` tokens as bytes, in the order of their merges.

    The first 256 are the bytes. There are fewer than `size` if nothing is left to merge.
    bar: its update() is called for each merge.
    """
    words = Words(counts)
    tokens = [bytes([i]) for i in range(256)]
    ids = {token: i for i, token in enumerate(tokens)}
    while len(tokens) < size and (pair := words.best()):
        token = tokens[pair[0]] + tokens[pair[1]]
        if token not in ids:        # else another pair made the same bytes before
            ids[token] = len(tokens)
            tokens.append(token)
            if bar is not None:
                bar.update()
        words.merge(*pair, ids[token])
    return tokens
