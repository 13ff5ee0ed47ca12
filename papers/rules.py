"""
The reward of sparrow.py, a function for ppo.py: a preference model, a rule model, or both.

    RULES=out/mine python ppo.py --out=out/mine --reward=papers/rules.py:both

RULES is a folder with reward.pt, which reward.py makes of rankings, and rules.pt, which `train`
makes of answers and people's yes or no. The rule model is one ScalarGPT for all rules. It reads the
prompt, the answer and then a rule, and gives the logit of whether the answer keeps it.
"""
import functools
import os

import torch
import torch.nn.functional as F

from common import adamw, cosine, epoch_batches, generator, update
from data import UserError, folder_of
from data.vocab import Vocab
from model import ScalarGPT
from plumbing.checkpoint import digest, load, model_from, save
from plumbing.device import pick_dtype
from reward import score_sequences

RULES = {"rude": "Do not be rude.", "harmful": "Do not help to do harm.",
         "invents": "Do not make things up.", "off": "Answer the question."}
BATCH, LR = 64, 6e-4
DTYPE = pick_dtype("auto", torch.device("cpu"))


def with_rule(prompt, response, rule, vocab, block):
    """Token ids of a prompt, an answer and a rule's sentence, in this order.

    The rule stands last, since the score is read at the last token, which sees all before it. What
    does not fit the block is cut off at the beginning.
    """
    ids = vocab.prompt(prompt) + vocab.response(response) + vocab.encode(RULES[rule])
    return ids[-block:]


def rule_loss(scores, kept):
    """Binary cross-entropy of logits (n,) and labels (n,), 1 where a person says that the answer
    keeps the rule. In nats."""
    return F.binary_cross_entropy_with_logits(scores, kept)


def rule_reward(scores):
    """Logits (n, rules) → (n,): the mean over all rules of log P(kept)."""
    return F.logsigmoid(scores).mean(-1)


def rule_scores(model, pairs, vocab):
    """(prompt, answer) pairs → logits (n, rules)."""
    rows = [with_rule(*pair, rule, vocab, model.config.block_size)
            for pair in pairs for rule in RULES]
    return score_sequences(model, rows, vocab).view(len(pairs), len(RULES))


def train(sft, examples, vocab, seed, path):
    """One epoch over examples, (prompt, answer, rule, 1 if kept else 0), from an SFT checkpoint
    (its path) → rules.pt at `path`, in the form of a reward model's."""
    checkpoint = load(sft)
    model = ScalarGPT.from_gpt(model_from(checkpoint, dtype=DTYPE))
    rows = [with_rule(*example[:3], vocab, model.config.block_size) for example in examples]
    kept = torch.tensor([float(example[3]) for example in examples])
    batches = epoch_batches(list(map(len, rows)), BATCH, generator(seed, "rules"))
    optimizer = adamw(model, LR, 0.1)
    for step, batch in enumerate(batches):
        scores = score_sequences(model, [rows[i] for i in batch], vocab)
        rule_loss(scores, kept[batch]).backward()
        update(model, optimizer, LR * cosine(step, len(batches), 10))

    with torch.no_grad():       # for a reward with mean 0 and spread 1 on these answers
        found = [rule_reward(rule_scores(model, [example[:2] for example in examples[i:i + 32]],
                                         vocab)) for i in range(0, min(512, len(examples)), 32)]
    found = torch.cat(found)
    results = {"score_mean": found.mean().item(), "score_std": found.std().item()}
    weights = model.state_dict()
    save(path, {**checkpoint, "stage": "reward", "model": weights, "hash": digest(weights),
                "results": results})


# ---- what ppo.py calls: (prompt, answer) → a number ----

@functools.cache
def network(name):
    """A model of the folder RULES → the network, its vocabulary, mean and spread of its scores."""
    if not (folder := os.environ.get("RULES")):
        raise UserError("papers/rules.py needs the folder of reward.pt and rules.pt in the "
                        "environment: RULES=out/mine python ppo.py …")
    checkpoint = load(os.path.join(folder, name + ".pt"))
    model = model_from(checkpoint, dtype=DTYPE)
    results = checkpoint["results"]
    return (model, Vocab(folder_of(checkpoint["config"]["data"])), results["score_mean"],
            results["score_std"])


@torch.no_grad()
def preference(prompt, response):
    """The reward model's score, with mean 0 and spread 1 on the answers that were ranked."""
    model, vocab, mean, std = network("reward")
    row = (vocab.prompt(prompt) + vocab.response(response))[-model.config.block_size:]
    score = score_sequences(model, [row], vocab)
    return (score.item() - mean) / std


@torch.no_grad()
def rules(prompt, response):
    """The mean of log P(kept) over the rules, with mean 0 and spread 1 likewise."""
    model, vocab, mean, std = network("rules")
    return (rule_reward(rule_scores(model, [(prompt, response)], vocab)).item() - mean) / std


def both(prompt, response):
    return preference(prompt, response) + rules(prompt, response)
