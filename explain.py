"""
One answer as PPO sees it, token by token, and what one step of PPO on it changes.

    python explain.py --prompt="Who is Anna?"     # or another's answer: --answer="Go away."

A run does not keep its critic: here it is the reward model, as when PPO starts. Nor its rollouts:
here 15 other answers to the prompt stand beside this one. The step is on this one alone, at the
full learning rate, without pretraining text. /why in chat.py explains the last answer.

KL         log π − log π_SFT: above 0 where π likes the token better than SFT does
reward     −β·KL, and on the last token the score as well
value      V, what the critic expects before this token: all rewards from it on
advantage  A, how much better than V it went (GAE); return R = A + V, what the critic learns
whitened   (A − mean) / deviation, over the 16 answers: above 0 for more of this token, else less
"""
import plumbing.cpu     # first: settings that only work before torch is loaded
from dataclasses import dataclass

import ppo
import sampling
from common import adamw, generator, update
from data import UserError, folder_of
from data.vocab import Vocab
from plumbing.checkpoint import load_network
from plumbing.command_line import Common, coloured, entry, flag, parse
from plumbing.inputs import check_room
from plumbing.stages import in_round, round_of
from rollout import Rollout, reward_scores


@dataclass
class Config(Common):
    prompt: str = flag("", "what is answered")
    answer: str = flag("", "explain this one; without it, one is sampled")


def explain(config, vocab, stage, prompt, response=None):
    """Print all that PPO computes of a stage's response (token list) to a prompt; None: sampled."""
    trained, judge = (in_round(name, round_of(stage)) for name in ("ppo", "reward"))
    _, made = load_network(config, trained, vocab)
    if name := made["config"]["reward"]:
        raise UserError(f"{trained}.pt was made with --reward={name}, without a reward model")
    run = ppo.Config(**made["config"] | {"beta": made["results"]["beta"]})
    (policy, _), (after, _), (reference, _), (critic, judged) = (
        load_network(config, name, vocab) for name in (stage, stage, "sft", judge))
    n, block = max(config.max_new_tokens, len(response or [])), policy.config.block_size
    check_room(f"--prompt and {n} tokens of answer", [{"prompt": prompt}], vocab, block - n)
    # 1. and 2. of ppo.py's loop: rollout and score
    ids, results = vocab.prompt(prompt), judged["results"]
    responses = sampling.generate(policy, [ids] * 16, config.max_new_tokens, run.temperature,
                                  eos=vocab.eos, generator=generator(config.seed, "explain"))
    responses[0] = response or responses[0]
    rollout = Rollout.of([ids] * 16, responses, vocab, policy)
    scores = ppo.penalize_missing_eos(reward_scores(critic, rollout, 16), rollout.has_eos,
                                      results["score_mean"], results["score_std"])
    # 3. and 4. log-probabilities, values, rewards and advantages
    mask = rollout.mask
    ppo.fill_in(rollout, policy, reference, critic, 16, run.temperature)
    penalties, rewards = (ppo.kl_rewards(x, rollout.logprobs, rollout.ref_logprobs, mask, run.beta)
                          for x in (0 * scores, scores))
    advantages, rollout.returns = ppo.gae(rewards, rollout.values, mask, run.gamma, run.lam)
    rollout.advantages = ppo.masked_whiten(advantages, mask)
    # 5. update, with this answer as the minibatch
    mb = rollout[[0]]
    ppo.ppo_backward(after, critic, mb, run)
    update(after, adamw(after, run.lr, eps=1e-5), run.lr)
    logprobs = ppo.rollout_logprobs(after, mb, 1, run.temperature).requires_grad_()
    ppo.policy_loss(logprobs, mb.logprobs, mb.advantages, mb.mask, run.clip).backward()
    held = (logprobs.grad == 0) & (mb.advantages != 0)
    _, ratio = ppo.ratio_of(logprobs.detach(), mb.logprobs, mb.mask)
    columns = {
        "log π": mb.logprobs, "log π_SFT": mb.ref_logprobs, "KL": mb.logprobs - mb.ref_logprobs,
        "−β·KL": penalties, "reward": rewards, "value": mb.values, "advantage": advantages,
        "return": mb.returns, "whitened": mb.advantages, "before, %": 100 * mb.logprobs.exp(),
        "after, %": 100 * logprobs.exp(), "ratio": ratio, "clip": held}
    columns = {name: x[0, len(ids):int(mb.lengths)].tolist() for name, x in columns.items()}
    tokens = [repr(vocab.encoding.decode([i]))[1:-1] for i in responses[0]]
    print(vocab.encoding.decode(ids + responses[0]))
    show(tokens, columns, scores[0].item(), advantages[mask], run)


def table(tokens, columns, names):
    """Print a line a token: in a terminal green or red by `whitened`, bold if that is over 1."""
    print(f"\n{'token':13}" + "".join(f"{name:>10}" for name in names))
    for token, x, *row in zip(tokens, columns["whitened"], *map(columns.get, names)):
        row = ["held" * x if isinstance(x, bool) else f"{round(x, 3) + 0.0:.3f}" for x in row]
        print(coloured(f"{token:13.12}", x) + "".join(f"{cell:>10}" for cell in row))


def show(tokens, columns, score, advantages, run):
    """Print both tables, and numbers beside the same by hand. advantages: of all answers, (n,)."""
    _, _, kl, _, r, V, A, R, white, *_ = columns.values()
    mean, std = advantages.mean().item(), (advantages.var(correction=0).item() + 1e-8) ** 0.5
    table(tokens, columns, list(columns)[:9])
    print("\n    the table = by hand")
    for left, right, how in [
            (sum(r), score - run.beta * sum(kl),
             f"Σ reward = score {score:.3f} − {run.beta:g} · Σ KL {sum(kl):.3f}"),
            (A[0], r[0] + run.gamma * ([*V, 0.0][1] + run.lam * [*A, 0.0][1]) - V[0],
             f"first A = reward + {run.gamma:g} · (next V + {run.lam:g} · next A) − V"),
            (A[0], R[0] - V[0], "first A = R − V"),
            (white[0], (A[0] - mean) / std, f"first whitened = (A {-mean:+.3f}) / {std:.3f}")]:
        print(f"{left:12.3f} = {right:<8.3f} {how}")
    print("\nprobabilities before and after one step; held: the clip stops a second one")
    table(tokens, columns, list(columns)[8:])
    print("\n" + __doc__.strip().rpartition("\n\n")[2])


def main():
    config = parse(Config, __doc__)
    if not config.prompt.strip() or "answer" in config.given and not config.answer.strip():
        raise UserError("give --prompt some text, and --answer too where you give one")
    vocab = Vocab(folder_of(config.data))
    explain(config, vocab, "ppo", config.prompt, config.answer and vocab.response(config.answer))


if __name__ == "__main__":
    entry(main)
