"""
Talk to the model of any stage, or to several side by side.

    python chat.py                                  # the newest stage there is
    python chat.py --stage=pretrain,sft,ppo         # the same prompt to each
    python chat.py --prompt="Name three animals."   # one answer, then exit
    python chat.py --best_of=16                     # the best of 16 answers, by the reward model

/help shows an example of every kind of message, /why what PPO makes of the last one (explain.py).
/reset forgets the conversation, /quit (or Ctrl-D) ends it. Each stage has its own history.
"""
import plumbing.cpu     # first: settings that only work before torch is loaded
import os
import time
from dataclasses import dataclass

import sampling
from common import generator
from data import UserError, folder_of, read_jsonl
from data.vocab import Vocab
from explain import explain
from plumbing.checkpoint import load_network
from plumbing.command_line import Common, entry, flag, parse, typed
from plumbing.stages import POLICY, in_round, policies, round_of
from ppo import penalize_missing_eos
from rollout import Rollout, reward_scores


@dataclass
class Config(Common):
    stage: str = flag("", "one or several of pretrain, sft, ppo, ppo-2 …, joined by commas; empty: "
                          "the newest there is")
    prompt: str = flag("", "answer this and exit")
    temperature: float = flag(1.0, "0 is greedy", "0 or [0.001, inf)")
    top_k: int = flag(0, "sample from the k likeliest tokens; 0 is all", "[0, inf)")
    top_p: float = flag(1.0, "sample from the smallest set of tokens with this much probability",
                        "(0, 1]")
    best_of: int = flag(1, "answers to choose from", "[1, inf)")


def fit(turns, vocab, room):
    """The newest turns of a conversation, as many as `room` tokens hold: the user's first.

    Raises UserError if the last turn alone does not fit.
    """
    if room < 3:
        raise UserError("--max_new_tokens leaves no room for a prompt in the model's block: lower "
                        "it")
    while len(ids := vocab.prompt(turns)) > room:
        if len(turns) < 3:
            raise UserError(f"the message has {len(ids)} tokens, there is room for {room}: shorten "
                            f"it, or lower --max_new_tokens")
        turns = turns[2:]
    return turns


def examples(folder):
    """A held-out prompt of every kind → {kind: prompt}; where there are no kinds, ten prompts."""
    try:
        rows = read_jsonl(os.path.join(folder, "prompts.jsonl"), ["prompt"], "heldout")
    except UserError:       # one can talk without examples
        return {}
    rows = [row for row in rows if isinstance(row["prompt"], str) and "meaning" not in row]
    if not any("kind" in row for row in rows):
        return dict(enumerate(row["prompt"] for row in rows[:10]))
    return {row.get("kind", "other"): row["prompt"] for row in rows if not row.get("unseen")}


def pieces(model, ids, vocab, options):
    """Yield an answer token by token, each with the text that it adds."""
    response, seen = [], ""
    for _, (token,) in sampling.stream(model, [ids], **options):
        response.append(token)
        text = vocab.decode(response)
        text = seen if text.endswith("\ufffd") else text     # its last letter lacks bytes: wait
        yield token, text[len(seen):]
        seen = text


def reply(model, ids, vocab, options):
    """Print an answer token by token; returns its tokens."""
    response = []
    for token, piece in pieces(model, ids, vocab, options):
        print(piece, end="", flush=True)
        response.append(token)
    print()
    return response


def best_reply(model, reward_model, results, ids, vocab, n, options):
    """The best of n answers by the reward model → its tokens, its score beside the others'.

    results: the reward model's, for PPO's rule on a missing EOS.
    """
    responses = sampling.generate(model, [ids] * n, **options)
    rollout = Rollout.of([ids] * n, responses, vocab, model)
    scores = penalize_missing_eos(reward_scores(reward_model, rollout, n), rollout.has_eos,
                                  results["score_mean"], results["score_std"])
    best = scores.argmax().item()
    return responses[best], (f"[{scores[best]:.2f}; the {n} from {scores.min():.2f}, "
                             f"mean {scores.mean():.2f}]")


def load_models(config, vocab):
    """→ ({stage: model}, the reward model of the newest one's round or None, its results)."""
    there = policies(config.out)
    stages = config.stage.split(",") if config.stage else there[-1:]
    if not stages:
        raise UserError(f"{config.out} has no finished stage to talk to; python ppo.py makes them "
                        f"all")
    if bad := [s for s in stages if not POLICY.fullmatch(s)]:
        raise UserError(f"--stage={config.stage}: {', '.join(sorted(bad))} can't talk; there are: "
                        f"{', '.join(there) or 'none yet'}")
    reward = [in_round("reward", max(map(round_of, stages)))] if config.best_of > 1 else []
    models = {}
    for stage in [*stages, *reward]:
        models[stage], checkpoint = load_network(config, stage, vocab)
    return models, models.pop(reward[0]) if reward else None, checkpoint["results"]


def main():
    config = parse(Config, __doc__)
    if config.best_of > 1 and config.temperature == 0:
        raise UserError(f"--best_of={config.best_of}: with --temperature=0 all answers would be "
                        f"the same one")
    folder = folder_of(config.data)
    vocab = Vocab(folder)
    models, reward_model, results = load_models(config, vocab)
    rng = generator(config.seed if "seed" in config.given else time.time_ns(), "chat")
    options = dict(max_new_tokens=config.max_new_tokens, temperature=config.temperature,
                   top_k=config.top_k or None, top_p=config.top_p, eos=vocab.eos, generator=rng)
    history, told = {stage: [] for stage in models}, set()      # told: that its history is cut
    last = []       # the answer that /why explains: its stage, its turns, its tokens

    def answer(message):
        for stage, model in models.items():
            turns = history[stage] + [{"role": "user", "content": message}]
            seen = fit(turns, vocab, model.config.block_size - config.max_new_tokens)
            ids = vocab.prompt(seen)
            if len(seen) < len(turns) and stage not in told:
                told.add(stage)
                print(f"(too long: the first {len(turns) - len(seen)} messages are no longer read)")
            print(f"{stage:9s}" if len(models) > 1 else "", end="", flush=True)
            if reward_model:
                new, scores = best_reply(model, reward_model, results, ids, vocab, config.best_of,
                                         options)
                print(f"{vocab.decode(new).strip()}   {scores}")
            else:
                new = reply(model, ids, vocab, options)
            last[:] = stage, seen, new
            history[stage] = [*turns, {"role": "assistant", "content": vocab.decode(new).strip()}]

    if config.prompt:
        return answer(config.prompt)
    print(f"{', '.join(models)} of {config.out}; /help, /why, /reset forgets, /quit ends")
    if shown := sorted(examples(folder).values(), key=len)[:3]:
        print("try: " + "\n     ".join(shown))
    while True:
        message = typed("> ")
        if message is None:
            return print()
        if message == "/quit":
            return
        if message == "/reset":
            history, told, last = {stage: [] for stage in models}, set(), []
            print("(forgotten)")
        elif message == "/help":
            for kind, prompt in examples(folder).items():
                print(f"{kind:12}{prompt}")
        elif message == "/why" and not last:
            print("there is no answer yet")
        elif message.startswith("/") and message != "/why":
            print("there are /help, /why, /reset and /quit")
        elif "\ufffd" in message:
            print("part of this is not valid UTF-8, type it again")
        elif message:
            try:
                explain(config, vocab, *last) if message == "/why" else answer(message)
            except UserError as e:
                print(e)


if __name__ == "__main__":
    entry(main)
