"""
DPO: the policy learns from the comparisons themselves, without a reward model and without sampling.

    python papers/dpo.py

Rafailov et al. 2023, Direct preference optimization. The optimum of PPO's objective is π* with
r(x, y) = β log(π*(y|x) / π_ref(y|x)) + a number for each x (eq. 5). Two answers to one prompt have
the same number, so it cancels in the reward model's loss, and what is left trains the policy.

It learns from the comparisons that the reward model of the same seed was trained on. Beside it is
PPO-ptx of that seed, at the same β. The models have 57 thousand parameters (figure1.py's micro).
Left out: RMSprop, the paper's optimiser; here it is AdamW, as everywhere in this project.
"""
import lib      # first: puts the project on sys.path
import copy
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch.nn.functional as F

from common import adamw, cosine, epoch_batches, generator, update
from data import read_jsonl
from data.comparisons import encode_comparisons
from evaluate import wins
from figure1 import base, rates, tuned
from plumbing.command_line import entry
from ppo import forward_logprobs
from reward import better_pairs, pad_numbers
from rollout import Rollout

SIZE, BETAS, WAYS = "micro", [0.1, 0.3, 1.0, 3.0], ["DPO", "PPO-ptx"]


@dataclass
class Config:
    beta: float = 0.3
    lr: float = 2.7e-4
    epochs: int = 1         # over the comparisons
    batch: int = 16         # prompts a step, with all their pairs
    warmup: int = 10        # steps, then a cosine to a tenth


# ---- the maths ----

def dpo_loss(policy_logprobs_w, policy_logprobs_l, ref_w, ref_l, beta):
    """Mean of −log σ(β log(π(y_w)/π_ref(y_w)) − β log(π(y_l)/π_ref(y_l))) over pairs (eq. 7).

    y_w was ranked above y_l. All (pairs,): log-probabilities of whole answers, summed over their
    tokens, given the prompt. In nats.
    """
    margin = beta * ((policy_logprobs_w - ref_w) - (policy_logprobs_l - ref_l))
    return -F.logsigmoid(margin).mean()


def answer_logprobs(model, batch, vocab):
    """Σ_t log π(y_t | x, y_<t) of each answer to a batch's prompts → (B, K), and ranks (B, K).

    An empty slot has rank 0. batch: as of `comparisons`.
    """
    ranks = pad_numbers([ranks for _, _, ranks in batch])
    rows = [(prompt, answer) for prompt, answers, _ in batch for answer in answers]
    rollout = Rollout.of(*zip(*rows), vocab, model)
    found = forward_logprobs(model, rollout.tokens, rollout.mask).sum(1)
    return found.new_zeros(ranks.shape).masked_scatter(ranks > 0, found), ranks


# ---- the run ----

def comparisons(rows, vocab, block):
    """Rows of comparisons.jsonl → [(prompt, its answers, their ranks)], as token lists.

    Dropped is what the reward model does not learn from either."""
    found = []
    for row in rows:
        n = len(vocab.prompt(row["prompt"]))
        for tokens, ranks, _ in encode_comparisons([row], vocab, block)[0]:
            found.append((tokens[0][:n], [t[n:] for t in tokens], ranks))
    return found


def train(policy, items, vocab, config, seed, watch=lambda done, policy: None):
    """Train the policy (GPT) in place. items: of `comparisons`. The reference is its copy.
    watch(share of the steps that are done, policy) is called after each."""
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = adamw(policy, config.lr)
    lengths = [max(map(len, answers)) + len(prompt) for prompt, answers, _ in items]
    batches = [batch for epoch in range(config.epochs) for batch in epoch_batches(
        lengths, config.batch, generator(seed, "dpo", epoch))]
    for step, batch in enumerate(batches):
        batch = [items[i] for i in batch]
        ref, _ = answer_logprobs(reference, batch, vocab)
        logprobs, ranks = answer_logprobs(policy, batch, vocab)
        b, w, l_ = better_pairs(ranks).nonzero(as_tuple=True)       # ties make no pair
        dpo_loss(logprobs[b, w], logprobs[b, l_], ref[b, w], ref[b, l_], config.beta).backward()
        update(policy, optimizer, config.lr * cosine(step, len(batches), config.warmup))
        watch((step + 1) / len(batches), policy)


def compare(ours, sft):
    """What `lib.measure` says of a policy and of SFT → gold, win rate, KL, score, length."""
    means = {name: float(ours[name].mean()) for name in ("gold", "kl", "score", "length")}
    return means | {"win": sum(wins(ours["gold"], sft["gold"])) / len(sft["gold"])}


def measured(policy, quick, sft, reward_model, run):
    """`compare` on 900 held-out prompts, of the half that settings may be chosen on."""
    nets, rows = list(map(lib.network, (sft, reward_model))), lib.heldout(run, 40 if quick else 900)
    return compare(*(lib.measure(run, model, *nets, rows) for model in (policy, nets[0])))


def ppo_flags(args, beta, ptx_coef):
    """The base, and ppo.py's flags, with half the learning rate that figure1.py's runs have."""
    return [base(args, SIZE), f"--size={SIZE}", f"--beta={beta}", f"--ptx_coef={ptx_coef}",
            *rates(SIZE, lr=1e-4, critic_lr=5e-4)]


def job(quick, seed, way, beta):
    """→ what is `measured` of one policy."""
    args, run = SimpleNamespace(quick=quick), lib.world()
    sft, reward_model = (tuned(args, SIZE, seed, name) for name in ("sft", "reward"))
    if way == "DPO":
        policy = lib.network(sft)
        rows = read_jsonl(sft.replace("sft.pt", "comparisons.jsonl"), ["prompt"], "train")
        items = comparisons(rows, run.vocab, policy.config.block_size)
        train(policy, items, run.vocab, replace(Config(), beta=beta), seed)
    else:
        policy = lib.run_ppo(args, f"dpo-{seed}-{beta}", seed, sft, *ppo_flags(args, beta, 1))
    return measured(policy, quick, sft, reward_model, run)


def main():
    args = lib.arguments(__doc__, 3)
    for seed in args.seeds:
        tuned(args, SIZE, seed, "reward")
    rows = lib.collect(args, "dpo", job, lib.over(
        args.seeds, *({"way": way, "beta": beta} for beta in BETAS for way in WAYS)))
    fig, axes = lib.figure(3)
    for ax, column, label in zip(axes[0], ["gold", "win", "kl"], [
            "gold score", "win rate against SFT", "KL to SFT, nats an answer"]):
        for way in WAYS:
            values = [lib.pick(rows, column, way=way, beta=beta) for beta in BETAS]
            lib.line(ax, f"{way}, {column}", BETAS, values)
        ax.set(xscale="log", xlabel="β", ylabel=label)
    axes[0, 2].set_yscale("symlog")
    fig.suptitle(f"the same comparisons and objective, two ways to it, {len(args.seeds)} seeds")
    lib.save(args, fig, "dpo")


if __name__ == "__main__":
    entry(main)
