"""
β, the weight of the KL penalty: what it buys and what it costs.

    python experiments/beta.py              # β from 0 to 1 and an adaptive one, 3 seeds: beta.csv, beta.png
    python experiments/beta.py --seeds=5

Everything but β is as in the default run, whose own result (β = 0.1) is taken as it is. Each final policy answers 900
held-out prompts once: reward-model score, gold score, KL to SFT and entropy (nats an answer), length.
"""
import lib

BETAS = [0, 0.03, 0.1, 0.3, 1]
TARGET = 2      # nats an answer, for the adaptive controller
# Ziegler et al.'s controller changes β by at most 0.2 × episodes / 10,000 an iteration: over the 60 iterations here by a
# factor of 1.36, too slowly to steer. With a horizon of 1,000 it can.
FASTER = "ppo.adapt_beta = lambda beta, kl, target, episodes, f=ppo.adapt_beta: f(beta, kl, target, episodes, 1_000)"


def final(args, source, out, run):
    """Measures of the policy in `out`, against the SFT and the reward model in `source`."""
    found = lib.measure(run, lib.network(f"{out}/ppo.pt" if out else f"{source}/sft.pt"), lib.network(f"{source}/sft.pt"), lib.network(f"{source}/reward.pt"),
                        lib.heldout(run, 64 if args.quick else 900))
    return {k: float(found[k].mean()) for k in ("kl", "score", "gold", "entropy", "length", "eos")}


def main():
    args = lib.arguments(__doc__, 3)
    run = lib.world()

    def job(seed, setting):
        source = lib.checkpoints(args, seed, "ppo" if setting == 0.1 else "reward")
        out = source
        if setting == "sft":
            out = None
        elif setting != 0.1:
            out = lib.variant(source, lib.scratch(args, f"beta/{setting}-{seed}"), "sft.pt", "reward.pt")
            if setting == "adaptive":
                lib.stage(args, "ppo", out, seed, f"--adaptive_kl={TARGET}", patch=FASTER)
            else:
                lib.stage(args, "ppo", out, seed, f"--beta={setting}")
        return final(args, source, out, run)

    settings = ["sft", *BETAS, "adaptive"]
    rows = lib.collect(args, lib.place(args, "beta.csv"), [((s, seed), lambda s=s, seed=seed: job(seed, s)) for seed in args.seeds for s in settings], ["setting", "seed"])


if __name__ == "__main__":
    main()
