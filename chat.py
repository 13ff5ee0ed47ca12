"""
Talk to the model of any stage, or to several side by side.

    python chat.py                                  # the newest stage there is
    python chat.py --stage=pretrain,sft,ppo         # the same prompt to each
    python chat.py --prompt="Name three animals."   # one answer, then exit
    python chat.py --best_of=16                     # of 16 answers the one that the reward model likes best, with its score

/reset forgets the conversation, /quit (or Ctrl-D) ends it. With several stages each keeps a history of its own.
"""
import os
import time
from dataclasses import dataclass

from common import POLICY, Common, autocast, entry, generator, in_round, load, model_from, pad, parse, pick_device, pick_dtype, policies, round_of
from data import UserError, Vocab, folder_of
from ppo import eos_rule

import torch


@dataclass
class Config(Common):
    stage: str = ""             # one or several of pretrain, sft, ppo, ppo-2 …, joined by commas; empty: the newest there is
    prompt: str = ""            # answer this and exit
    temperature: float = 1.0    # 0 is greedy
    top_k: int = 0              # sample from the k likeliest tokens; 0 is all
    top_p: float = 1.0          # sample from the smallest set of tokens with this much probability
    best_of: int = 1            # answers to choose from


def fit(turns, vocab, room):
    """Token ids of a conversation, its oldest turns dropped in pairs until it fits `room`. Raises UserError if the last alone does not."""
    if room < 3:
        raise UserError("--max_new_tokens leaves no room for a prompt in the model's block: lower it")
    while len(ids := vocab.prompt(turns)) > room:
        if len(turns) < 3:
            raise UserError(f"the message has {len(ids)} tokens, there is room for {room}: shorten it, or lower --max_new_tokens")
        turns = turns[2:]
    return ids


def reply(model, turns, vocab, config, cast, rng, prefix=""):
    """Stream an answer to the conversation; returns its text."""
    ids = fit(turns, vocab, model.config.block_size - config.max_new_tokens)
    new, shown = [], ""
    print(prefix, end="", flush=True)
    with cast:
        for _, (token,) in model.stream([ids], config.max_new_tokens, config.temperature, config.top_k or None, config.top_p, vocab.eos, rng):
            new.append(token)
            text = vocab.decode(new)
            if not text.endswith("\ufffd"):      # a letter that is not whole yet
                print(text[len(shown):], end="", flush=True)
                shown = text
    print()
    return vocab.decode(new).strip()


@torch.no_grad()
def best_reply(model, reward_model, rm, turns, vocab, config, cast, rng, prefix=""):
    """Print the best of several answers, by the reward model (rm: its results) and PPO's rule on a missing EOS, and its score; returns its text."""
    ids = fit(turns, vocab, model.config.block_size - config.max_new_tokens)
    with cast:
        news = model.generate([ids] * config.best_of, config.max_new_tokens, config.temperature, config.top_k or None, config.top_p, vocab.eos, rng)
        tokens, lengths = pad([ids + new for new in news], vocab.pad, model.wte.weight.device)
        scores = reward_model.score(tokens, lengths)
    scores = eos_rule(scores, torch.tensor([new[-1] == vocab.eos for new in news], device=scores.device), rm["score_mean"], rm["score_std"])
    best = scores.argmax().item()
    answer = vocab.decode(news[best]).strip()
    print(f"{prefix}{answer}   [{scores[best]:.2f}; the {len(news)} from {scores.min():.2f}, mean {scores.mean():.2f}]")
    return answer


def main():
    config = parse(Config, __doc__)
    if config.temperature < 0 or config.top_k < 0 or not 0 < config.top_p <= 1:
        raise UserError("--temperature and --top_k can't be negative, --top_p lies above 0 and up to 1")
    if config.best_of < 1 or config.best_of > 1 and config.temperature == 0:
        raise UserError(f"--best_of={config.best_of}: give 1 or more; with --temperature=0 all answers would be the same one")
    there = policies(config.out)
    stages = config.stage.split(",") if config.stage else there[-1:]
    if not stages:
        raise UserError(f"{config.out} has no finished stage to talk to; python ppo.py makes them all")
    if bad := [s for s in stages if not POLICY.fullmatch(s)]:
        raise UserError(f"--stage={config.stage}: {', '.join(sorted(bad))} can't talk; there are: {', '.join(there) or 'none yet'}")
    vocab = Vocab(folder_of(config.data))
    device = pick_device(config.device)
    cast = autocast(device, pick_dtype(config.dtype, device))
    models, rm = {}, in_round("reward", max(map(round_of, stages)))       # the reward model of the newest one's round
    for stage in [*stages, *[rm] * (config.best_of > 1)]:
        checkpoint = load(os.path.join(config.out, stage + ".pt"), stage)
        if checkpoint["vocab"] != vocab.hash:
            raise UserError(f"{config.out}/{stage}.pt was made with another vocabulary than that of {config.data}; give its --data")
        models[stage] = model_from(checkpoint).to(device)
    reward_model, results = models.pop(rm, None), checkpoint["results"]
    rng = generator(config.seed if "seed" in config.given else time.time_ns(), "chat")
    history = {stage: [] for stage in stages}
    if not config.prompt:
        print(f"{', '.join(stages)} of {config.out}; /reset forgets, /quit ends")
    while True:
        try:
            message = config.prompt or input("> ").strip()
        except EOFError:
            return print()
        if message == "/quit":
            return
        if message == "/reset":
            history = {stage: [] for stage in stages}
            print("(forgotten)")
        elif message.startswith("/"):
            print("there are /reset and /quit")
        elif message:
            for stage, model in models.items():
                turns = history[stage] + [{"role": "user", "content": message}]
                try:
                    prefix = f"{stage:9s}" if len(models) > 1 else ""
                    answer = (best_reply(model, reward_model, results, turns, vocab, config, cast, rng, prefix) if reward_model
                              else reply(model, turns, vocab, config, cast, rng, prefix))
                except UserError as e:
                    if config.prompt:
                        raise
                    print(e)
                    continue
                history[stage] = turns + [{"role": "assistant", "content": answer}]
        if config.prompt:
            return


if __name__ == "__main__":
    entry(main)
