"""
Prompts beside tuning: what each makes of the instructions it was given, and of other kinds.

    python papers/prompt.py

Brown et al. 2020, Language models are few-shot learners: a frozen model is asked as it is, or after
examples. Lester et al. 2021, The power of scale for parameter-efficient prompt tuning (section 2):
embeddings in front of the text are trained, the model stays frozen. Wei et al. 2021, Finetuned
language models are zero-shot learners: tuned on many kinds of tasks, it is asked other kinds.

One base is asked by the chat template, in which it has seen no useful answer, or as a page,
"Q: … A:", of which its text is full. The soft prompt and SFT learn the template from as many
demonstrations of 1, 3 or 12 kinds of instruction. Six other kinds are held back. Pages ask these
too: what is measured is whether the base uses here what it knows from there.

Left out: several templates a task (FLAN); ensembles, and lengths other than 20 (Lester et al.).
"""
import lib      # first: puts the project on sys.path
import random
from types import SimpleNamespace

import torch
from torch import nn

import sampling
from common import adamw, cosine, generator, update
from conversation import conversation
from experiments.lib import base_hash, base_of, make_base, network, world
from kinds import KINDS
from plumbing.command_line import entry
from sft import collate, sft_loss

PROMPTS = ["zero-shot", "few-shot", "zero-shot page", "few-shot page"]      # of the kind asked
TUNED = {"soft prompt": (400, 0.3), "SFT": (60, 1e-3)}          # steps, learning rate
NUMBERS, LENGTH, SHOTS = [1, 3, 12], 20, 2      # of kinds; embeddings of a soft prompt; examples
DEMONSTRATIONS, BATCH, QUESTIONS, ROOM, ANSWER = 480, 32, 40, 80, 48    # the last two in tokens
ASKED = [kind for kind in KINDS if KINDS[kind].share]   # the others are in no text


def split(seed):
    """→ (twelve kinds to learn from, six held back). Seeds 1, 2 and 3 hold back each kind once."""
    order = random.Random(2020).sample(ASKED, len(ASKED))
    held_back = order[seed % 3::3]
    return random.Random(seed).sample([k for k in order if k not in held_back], 12), held_back


def demonstrations(kinds, n, rng):
    """n questions of these kinds, none held out, and careful answers: [(question, answer)]."""
    turns = [conversation(1, {kind: 1}, "train", None, rng)[0] for kind in (kinds * n)[:n]]
    return [(turn.said, KINDS[turn.kind].good(turn.slots, rng)) for turn in turns]


def asked(vocab, question, examples=(), page=False):
    """Token ids of a question after examples, as a page or as turns of a chat. The first examples
    are left out if there is no room."""
    said = list(enumerate([*sum(examples, ()), question]))
    if page:
        ids = vocab.encode(" ".join(f"{'QA'[i % 2]}: {text}" for i, text in said) + " A:")
    else:
        roles = ["user", "assistant"]
        ids = vocab.prompt([{"role": roles[i % 2], "content": text} for i, text in said])
    return asked(vocab, question, examples[1:], page) if examples and len(ids) > ROOM else ids


class SoftPrompt(nn.Module):
    """A token embedding with LENGTH trained rows for `ids`, which come after the vocabulary's. The
    unembedding reads `weight`, the base's rows, so none of these ids is ever predicted."""
    def __init__(self, wte, rng):
        super().__init__()
        start = torch.randint(len(wte.weight), (LENGTH,), generator=rng)    # tokens at random
        self.weight, self.rows = wte.weight, nn.Parameter(wte.weight[start].clone())
        self.ids = [len(wte.weight) + i for i in range(LENGTH)]

    def forward(self, tokens):
        return nn.functional.embedding(tokens, torch.cat([self.weight, self.rows]))


def tune(model, method, shown, vocab, steps, lr, rng):
    """Train on the answers of demonstrations → the ids that go before every question."""
    before = []
    if method == "soft prompt":
        model.requires_grad_(False)
        model.wte = SoftPrompt(model.wte, rng)
        before = model.wte.ids
    prompts = [before + asked(vocab, question) for question, _ in shown]
    data = [(p + vocab.response(answer), len(p)) for p, (_, answer) in zip(prompts, shown)]
    optimizer = adamw(model, 0)
    for step in range(steps):
        mb = torch.randint(len(data), (BATCH,), generator=rng).tolist()
        tokens, mask = collate([data[i] for i in mb], vocab, model)
        sft_loss(model(tokens), tokens, mask).backward()
        update(model, optimizer, lr * cosine(step, steps, steps // 10))
    return before


# ---- what is measured ----

def gold(run, model, prompts, turns, rng):
    """The judge's marks for one answer to each turn. On a page the next question ends an answer."""
    answers = sampling.generate(model, prompts, ANSWER, eos=run.vocab.eos, generator=rng)
    texts = [run.vocab.decode(answer).split(" Q:")[0].strip() for answer in answers]
    return [run.judge.gold(turn.meaning, text)["gold"] for turn, text in zip(turns, texts)]


def job(quick, seed, base, method, kinds):
    """→ {kind: mean gold score of held-out questions}, the same questions for all."""
    run, rng, n, before = world(), random.Random(seed), 2 if quick else QUESTIONS, []
    turns = [conversation(1, {kind: 1}, "heldout", None, rng)[0] for kind in ASKED * n]
    model = network(base_of(SimpleNamespace(quick=quick)))
    if method in TUNED:
        steps, lr = (10, 1e-3) if quick else TUNED[method]
        shown = demonstrations(split(seed)[0][:kinds], DEMONSTRATIONS, rng)
        before = tune(model, method, shown, run.vocab, steps, lr, generator(seed, "tune"))
    shots, page = SHOTS * ("few-shot" in method), "page" in method
    prompts = [before + asked(run.vocab, turn.said, demonstrations([turn.kind], shots, rng), page)
               for turn in turns]
    marks = gold(run, model, prompts, turns, generator(seed, "answers"))
    return {kind: sum(marks[i::len(ASKED)]) / n for i, kind in enumerate(ASKED)}


def main():
    args = lib.arguments(__doc__, 3)
    base = base_hash(make_base(args))
    settings = [{"base": base, "method": method, "kinds": n} for method, n in [
        *((method, 0) for method in PROMPTS), *((method, n) for method in TUNED for n in NUMBERS)]]
    rows = lib.collect(args, "prompt", job, lib.over(args.seeds, *settings))

    def scores(part, method, n):
        """Mean gold score for each seed, of the kinds in this part of its split."""
        kinds = [split(seed)[part][:None if part else n or None] for seed in args.seeds]
        found = [row for row in rows if row["method"] == method and row["kinds"] == n]
        return [sum(row[kind] for kind in of) / len(of) for row, of in zip(found, kinds)]
    fig, [axes] = lib.figure(2)
    for part, (ax, title) in enumerate(zip(axes, ["kinds that were learnt", "kinds held back"])):
        for method in TUNED:
            found = [scores(part, method, n) for n in NUMBERS]
            lib.line(ax, f"{method}, {title}", NUMBERS, found)
            more = lib.interval([b - a for a, b in zip(found[0], found[-1])])
            print("  12 kinds less 1: {:.3f} ± {:.3f}".format(*more))
        for method, style in zip(PROMPTS, ["-", "--", "-.", ":"]):
            mean, half = lib.interval(scores(part, method, 0))
            ax.axhline(mean, color="k", lw=1, ls=style, label=f"{method}: {mean:.2f} ± {half:.2f}")
            print(f"{method}, {title}: {mean:.3f} ± {half:.3f}")
        ax.set(xscale="log", xticks=NUMBERS, xticklabels=NUMBERS, ylim=(0, 1),
               xlabel="kinds in the demonstrations", title=f"gold score, {title}")
    lib.save(args, fig, "prompt")


if __name__ == "__main__":
    entry(main)
