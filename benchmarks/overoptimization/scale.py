"""How large the proof is, and what it should cost."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class PPORun:
    """One PPO run of the grid.

    Attributes:
        num_texts: judged texts behind each reward model.
        kl_coef: weight of the KL penalty, fixed.
        combine: how the members of an ensemble are combined; None for the one of the run's seed.
        seed: of the run, and the number of its reward model: each run has another.
        iterations: of PPO.
        learning_rate: of PPO.
        depth: layers of each reward model's trunk, the policy's first ones; None for all.
        options: further settings of `lit-rlhf ppo fit`; not part of the name.
    """

    num_texts: int
    kl_coef: float
    combine: str | None = None
    seed: int = 1
    iterations: int = 24
    learning_rate: float = 9e-5
    depth: int | None = None
    options: tuple[tuple[str, object], ...] = ()

    @property
    def name(self) -> str:
        """Folder of the run."""
        kind = self.combine or "single"
        depth = "" if self.depth is None else f"-depth{self.depth}"
        size = f"{self.num_texts}{depth}-{kind}-kl{self.kl_coef:g}"
        return f"ppo-{size}-rate{self.learning_rate:g}-seed{self.seed}-{self.iterations}"


@dataclass(frozen=True)
class Scale:
    """A grid.

    Attributes:
        name: of the run's folder, behind `runs/overoptimization-`.
        sft_texts: demonstrations for the policy.
        sizes: judged texts of the reward models.
        ensemble_sizes: those of them that get `num_members` models instead of one.
        num_members: of an ensemble.
        gold_groups: judged groups for the gold model, None for all.
        judge_groups: judged groups for each of the judges.
        num_judges: reward models that make the validation reward.
        bon_prompts: prompts for best-of-n.
        bon_samples: samples a prompt, the largest n.
        ppo: the PPO runs whose curves are shown.
        look_every: iterations between two validations.
        batch_size: prompts of an iteration.
        num_prompts: validation prompts.
        max_new_tokens: of a response.
        diverging: the run that should diverge, repeated by seed.
        healthy: the run that should not.
        alarm_runs: repetitions of each.
    """

    name: str
    sft_texts: int
    sizes: tuple[int, ...]
    ensemble_sizes: tuple[int, ...]
    num_members: int
    gold_groups: int | None
    judge_groups: int
    num_judges: int
    bon_prompts: int
    bon_samples: int
    ppo: tuple[PPORun, ...]
    look_every: int
    batch_size: int
    num_prompts: int
    max_new_tokens: int
    diverging: PPORun
    healthy: PPORun
    alarm_runs: int

    def models(self) -> list[tuple[int, int]]:
        """Return (number of texts, member) of every proxy, members counted from 1."""
        return [
            (size, member)
            for size in self.sizes
            for member in range(1, 1 + (self.num_members if size in self.ensemble_sizes else 1))
        ]

    def judges(self) -> list[str]:
        """Return the names of the reward models that make the validation reward."""
        return [f"judge-{member}" for member in range(1, 1 + self.num_judges)]

    def alarms(self) -> dict[str, list[PPORun]]:
        """Return what should diverge and what should not, by seed."""
        seeds = range(1, 1 + self.alarm_runs)
        kinds = {"diverging": self.diverging, "healthy": self.healthy}
        return {kind: [replace(run, seed=seed) for seed in seeds] for kind, run in kinds.items()}

    def minutes(self, seconds_per_thousand_tokens: float = 6.0) -> dict[str, float]:
        """Estimate each piece on a machine by its training speed; a forward is a third of that.

        Texts of the ratings have some 25 tokens; decoding is taken as 300 tokens a second.
        """
        step, text = seconds_per_thousand_tokens / 1000, 25
        gold = 32 * (self.gold_groups or 280)
        responses = self.bon_prompts * self.bon_samples
        scored = responses * (len(self.models()) + 1) * self.max_new_tokens
        # Each run once, and the reward models that it alone needs; small ones take no time.
        alarms = [run for runs in self.alarms().values() for run in runs if run not in self.ppo]
        runs = (*self.ppo, *alarms)
        single = {(run.num_texts, run.seed) for run in runs if not (run.combine or run.depth)}
        learned = [*self.models(), *sorted(single - set(self.models()))]
        num_texts = sum(size for size, _ in learned) + self.num_judges * 32 * self.judge_groups
        return {
            "models": (self.sft_texts + num_texts + gold) * text * step / 60 + len(learned),
            "best_of_n": (responses * self.max_new_tokens / 300 + scored * step / 3) / 60,
            "ppo": sum(self._run_minutes(run, step) for run in self.ppo),
            "alarms": sum(self._run_minutes(run, step) for run in alarms),
        }

    def _run_minutes(self, run: PPORun, step: float) -> float:
        """Estimate a run: two epochs and two forwards an iteration.

        A look has forwards of policy, reference, reward, gold and the judges.
        """
        settings = self.settings(run)
        keys = ("model.sampling.max_new_tokens", "data.batch_size", _LOOK_EVERY, _NUM_PROMPTS)
        num_tokens, batch_size, look_every, num_prompts = (int(str(settings[key])) for key in keys)
        row, decoding = num_tokens + 7, num_tokens / 300
        iteration = batch_size * (row * step * (2 + 2 * 2 / 3) + decoding)
        look = num_prompts * (row * step * (4 + self.num_judges) / 3 + decoding)
        return (run.iterations * (iteration + look / look_every) + look) / 60

    def settings(self, run: PPORun) -> dict[str, object]:
        """Return the settings of `lit-rlhf ppo fit` by which a run has its size."""
        return {
            "model.optimizer.learning_rate": run.learning_rate,
            "model.sampling.max_new_tokens": self.max_new_tokens,
            "trainer.limit_train_batches": run.iterations,
            _LOOK_EVERY: self.look_every,
            "data.batch_size": self.batch_size,
            "data.eval_batch_size": self.num_prompts,
            _NUM_PROMPTS: self.num_prompts,
            **dict(run.options),
        }


_LOOK_EVERY, _NUM_PROMPTS = "trainer.val_check_interval", "data.limit_validation"
WEAK, STRONG = 0.005, 0.2
# Five to ten times the KL of the runs at WEAK. Gold did not turn even there.
WEAKEST = PPORun(100, 0.001, iterations=48, learning_rate=2e-4)
# Short iterations, looked at often, at a rate that stays: for many runs of either kind.
_ALARM_OPTIONS: tuple[tuple[str, object], ...] = (
    ("model.optimizer.schedule", "constant"),
    ("model.optimizer.warmup_fraction", 0.15),
    ("model.sampling.max_new_tokens", 16),
    ("data.batch_size", 16),
    (_LOOK_EVERY, 2),
)
# What is cut off after 16 tokens keeps its score, or the policy would first of all learn to end.
_KEEP_TORN = (*_ALARM_OPTIONS, ("model.missing_eos.action", "keep"))
# A reward model of one layer: gold turns, or does not rise; some judges do not see it.
ONE_LAYER = PPORun(100, 0.001, iterations=16, learning_rate=3e-4, depth=1, options=_KEEP_TORN)
# Of two layers and 300 texts: gold turns, or falls from the start, in most seeds.
TWO_LAYERS = replace(ONE_LAYER, num_texts=300, depth=2)


def _looked_at(run: PPORun, num_prompts: int) -> PPORun:
    """Give a run another number of validation prompts than its grid has."""
    prompts = ((_NUM_PROMPTS, num_prompts), ("data.eval_batch_size", num_prompts))
    return replace(run, options=(*run.options, *prompts))


# With 64 and 128 prompts, as in the runs of ONE_LAYER and TWO_LAYERS of the small grid, the fall of
# the judges was told from noise only where gold had clearly lost.
DIVERGING = _looked_at(TWO_LAYERS, 192)
HEALTHY = _looked_at(PPORun(100, STRONG, iterations=16, options=_ALARM_OPTIONS), 192)

FULL = Scale(
    name="full",
    sft_texts=1024,
    sizes=(100, 300, 1000, 3000),
    ensemble_sizes=(100, 300, 1000),
    num_members=3,
    gold_groups=None,
    judge_groups=30,
    num_judges=4,
    bon_prompts=48,
    bon_samples=64,
    ppo=(
        PPORun(100, WEAK),
        PPORun(1000, WEAK),
        PPORun(100, WEAK, "minimum"),
        PPORun(100, STRONG),
    ),
    look_every=3,
    batch_size=32,
    num_prompts=96,
    max_new_tokens=24,
    diverging=DIVERGING,
    healthy=replace(HEALTHY, num_texts=3000),
    alarm_runs=10,
)
SMALL = Scale(
    name="small",
    sft_texts=512,
    sizes=(100, 1000),
    ensemble_sizes=(100,),
    num_members=3,
    gold_groups=100,
    judge_groups=15,
    num_judges=4,
    bon_prompts=24,
    bon_samples=64,
    ppo=(
        PPORun(100, WEAK),
        PPORun(100, WEAK, "minimum"),
        replace(WEAKEST, num_texts=32, iterations=24),
        WEAKEST,
        replace(WEAKEST, seed=2),
        *(replace(ONE_LAYER, seed=seed) for seed in (1, 2, 3)),
        _looked_at(replace(TWO_LAYERS, seed=21), 128),
        replace(TWO_LAYERS, seed=2, kl_coef=STRONG),
        replace(TWO_LAYERS, combine="minimum"),
    ),
    look_every=3,
    batch_size=32,
    num_prompts=64,
    max_new_tokens=24,
    diverging=DIVERGING,
    healthy=HEALTHY,
    alarm_runs=10,
)
# For a test: a random model of two layers, a handful of texts.
SMOKE = Scale(
    name="smoke",
    sft_texts=64,
    sizes=(32, 64),
    ensemble_sizes=(32,),
    num_members=2,
    gold_groups=2,
    judge_groups=1,
    num_judges=2,
    bon_prompts=3,
    bon_samples=4,
    ppo=(PPORun(32, WEAK, "minimum", iterations=2),),
    look_every=1,
    batch_size=4,
    num_prompts=4,
    max_new_tokens=4,
    diverging=PPORun(32, WEAK, iterations=2, depth=1),
    healthy=PPORun(64, STRONG, iterations=2),
    alarm_runs=1,
)
SCALES = {scale.name: scale for scale in (FULL, SMALL, SMOKE)}
