"""
Prompts with sampled answers, and what the networks say about them. PPO, evaluate.py and chat.py
use this.
"""
import json
import os
from dataclasses import dataclass

import torch

import sampling
from common import by_length, generator, pad, response_mask, round_up
from data import load_judge, meaning_of, read_heldout, read_jsonl, replacing
from plumbing.device import to_device
from plumbing.processes import RANK, all_gather, all_reduce, shard
from plumbing.run import read_log


@dataclass
class Rollout:
    """Prompts with answers. rollout[rows] has these rows, with their padding cut off."""
    tokens: torch.Tensor        # (B, T) right-padded
    mask: torch.Tensor          # (B, T) True on the answer, its EOS included
    lengths: torch.Tensor       # (B,) of prompt and answer, on the CPU (see common.pad)
    has_eos: torch.Tensor       # (B,)
    logprobs: torch.Tensor = None           # this and the rest: (B, T)
    ref_logprobs: torch.Tensor = None
    values: torch.Tensor = None
    advantages: torch.Tensor = None
    returns: torch.Tensor = None

    @classmethod
    def of(cls, prompts, responses, vocab, model):
        """prompts, responses: lists of token lists; model: one that will read them."""
        rows, device = [p + r for p, r in zip(prompts, responses)], model.device
        tokens, lengths = pad(rows, vocab.pad, device, block=model.config.block_size)
        mask = response_mask(torch.tensor([len(p) for p in prompts]), lengths, tokens.size(1))
        has_eos = torch.tensor([r[-1] == vocab.eos for r in responses])
        return cls(tokens, to_device(mask, device), lengths, to_device(has_eos, device))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, rows):
        T = round_up(max(self.lengths[rows].tolist(), default=0))
        index = to_device(rows, self.tokens.device) if torch.is_tensor(rows) else rows

        def part(name, x):
            x = x[rows if name == "lengths" else index]
            return x[:, :T] if x.dim() == 2 else x
        return Rollout(**{name: part(name, x) for name, x in vars(self).items() if x is not None})

    def texts(self, vocab):
        """The answers as text."""
        return [vocab.decode(row[m].tolist()) for row, m in zip(self.tokens.cpu(), self.mask.cpu())]


def read_prompts(run):
    """The rows of prompts.jsonl to train on, and up to 256 held-out ones to measure on.

    Raises UserError if evaluate.py would have no prompt left.
    """
    path = os.path.join(run.folder, "prompts.jsonl")
    read_heldout(path, ["prompt"], final=True)
    heldout = read_heldout(path, ["prompt"])
    order = torch.randperm(len(heldout), generator=generator(run.config.seed, "heldout"))
    return read_jsonl(path, ["prompt"], "train"), [heldout[i] for i in order[:256].tolist()]


def sample_rollout(policy, prompts, config, vocab, rng):
    """Sample an answer to each prompt (token lists) → Rollout."""
    noise = sampling.draw_noise(len(prompts), config.max_new_tokens, rng)
    responses = all_gather(sampling.generate(
        policy, shard(prompts), config.max_new_tokens, config.temperature, eos=vocab.eos,
        noise=shard(noise)))
    return Rollout.of(prompts, responses, vocab, policy)


@torch.no_grad()
def in_chunks(function, rollout, size):
    """Apply `function` to `size` rows of similar length at a time → (B, T), 0 beyond their ends.

    function: a Rollout of b rows → (b, t). Each process fills in its own rows, so the sum over
    processes is the whole.
    """
    out = torch.zeros(rollout.tokens.shape, device=rollout.tokens.device)
    for rows in shard(by_length(rollout.lengths, size)):
        chunk = rollout[rows]
        out[rows, :chunk.tokens.size(1)] = function(chunk)
    return all_reduce(out)


def reward_scores(reward_model, rollout, size):
    """The reward model's scores (B,), at the last token of each answer."""
    return in_chunks(lambda chunk: reward_model.score(chunk.tokens, chunk.lengths)[:, None],
                     rollout, size)[:, 0]


def scorer(run, reward_model, reward_fn, size):
    """A function (Rollout, prompts' rows) → what the reward model or the function says (B,)."""
    def raw_scores(rollout, rows):
        if reward_model:
            return reward_scores(reward_model, rollout, size)
        texts = shard(list(zip(rows, rollout.texts(run.vocab))))
        scores = all_gather([reward_fn(row["prompt"], text) for row, text in texts])
        return torch.tensor(scores, device=run.device)
    return raw_scores


WATCHED, KEPT = 16, 20      # held-out prompts whose answers are logged, and iterations at most


def log_answers(iteration, rows, networks, fill_in, score, beta, run):
    """Add to OUT/ppo.answers.jsonl how the same prompts are answered by now; page.py shows it.

    A line holds what the networks of this iteration's rollout say of each token, and what it takes
    to make advantages of it. Nothing of it enters training: the noise is the same each time, from
    a generator of its own. networks: policy, reference, critic. fill_in: that of ppo.py.
    """
    config, vocab, rows = run.config, run.vocab, rows[:WATCHED]
    if iteration % -(-config.iterations // KEPT):
        return
    prompts, judge = [vocab.prompt(row["prompt"]) for row in rows], load_judge(run.folder)
    rng = generator(config.seed, "watched")
    rollout = sample_rollout(networks[0], prompts, config, vocab, rng)
    scores = score(rollout, rows).tolist()
    fill_in(rollout, *networks, WATCHED, config.temperature)
    tokens = {k: getattr(rollout, k) for k in ("logprobs", "ref_logprobs", "values")}
    answers = []
    for i, (row, text, mask) in enumerate(zip(rows, rollout.texts(vocab), rollout.mask)):
        answers.append({
            "prompt": row["prompt"], "score": round(scores[i], 3),
            "gold": judge and round(judge.gold(meaning_of(row), text)["gold"], 3),
            "tokens": [vocab.encoding.decode([t]) for t in rollout.tokens[i][mask].tolist()],
            **{name: [round(n, 3) for n in x[i][mask].tolist()] for name, x in tokens.items()}})
    path = run.log_path.removesuffix(".jsonl") + ".answers.jsonl"
    lines = [line for line in read_log(path) if line["step"] < iteration]    # if it goes on
    lines.append({"step": iteration, "iterations": config.iterations, "beta": beta,
                  "gamma": config.gamma, "lam": config.lam, "reward": config.reward,
                  "answers": answers})
    if not RANK:
        with replacing(path) as f:
            f.writelines(json.dumps(line) + "\n" for line in lines)
