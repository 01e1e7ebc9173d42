"""The steps of one round: what each takes and what it leaves, in the order in which they run.

sample   policy, prompts                      -> samples.jsonl    responses to choose from
choose   samples, last reward model           -> tasks.jsonl      pairs to ask about
collect  tasks, labelers, store               -> judged/          of this and all earlier rounds
reward   judgments, SFT backbone              -> reward/model
policy   reward model, SFT policy             -> policy/model
judge    new, last promoted and SFT policy    -> judge/
measure  reward models, random share          -> measures.json
promote  the judge's figures                  -> promotion.json
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lit_rlhf.child_command import run_command
from lit_rlhf.data.sources import read_records
from lit_rlhf.evaluation.figures import read_figures
from lit_rlhf.feedback.adding import Origin
from lit_rlhf.feedback.early_stop import SHARE
from lit_rlhf.feedback.exchange import full_row, task_of_row, training_row
from lit_rlhf.feedback.judgments import JudgedTask
from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.flywheel import models
from lit_rlhf.flywheel.choosing import RANDOM, choose_tasks, read_sampled
from lit_rlhf.flywheel.collecting import check_store, collect
from lit_rlhf.flywheel.labelers import SimulatedRaters
from lit_rlhf.flywheel.phases import (
    demonstrations,
    phase_words,
    policy_start,
    reward_model,
    training_data,
)
from lit_rlhf.flywheel.promotion import GATE, NEW, PROMOTED, SFT, decide
from lit_rlhf.flywheel.settings import FlywheelSettings
from lit_rlhf.flywheel.steps import (
    digest_source,
    read_json,
    read_rows,
    run_step,
    write_json,
    write_rows,
)
from lit_rlhf.modules.precision import autocast
from lit_rlhf.whole_files import written_whole

# Their order, which numbers the records.
STEPS = (
    *("sample", "choose", "collect", "reward", "best", "refresh"),
    *("policy", "judge", "measure", "promote"),
)
OPTIONAL_STEPS = ("best", "refresh")

OWN = "own.jsonl"  # in `judged/`: what was judged of the round's own tasks
MEASURES = ("on_random_share", "on_own_samples", "raters_right")

Run = Callable[[str, Sequence[str]], object]
Say = Callable[[str], None]


class Start(NamedTuple):
    """What a round begins with.

    Attributes:
        number: of the round, from 1.
        policy: folder of the last promoted policy; the SFT policy at first.
        policy_of: "SFT", or "round N" where it was promoted.
        reward: folder of the last round's reward model; None in the first round.
        judged: `judged/` of the last round; None in the first.
    """

    number: int
    policy: str
    policy_of: str = "SFT"
    reward: str | None = None
    judged: Path | None = None


@dataclass(frozen=True)
class Round:
    """One round of the flywheel; each method is a step.

    Attributes:
        settings: of the run.
        start: what it begins with.
        store: where judgments are.
        say: prints a line.
        run: runs a command of `lit-rlhf` in a process of its own.
    """

    settings: FlywheelSettings
    start: Start
    store: FeedbackStore
    say: Say
    run: Run = run_command

    @property
    def folder(self) -> Path:
        """Of the round."""
        return self.settings.round_folder(self.start.number)

    @property
    def seed(self) -> int:
        """Of all that is drawn in the round."""
        return 1000 * self.settings.seed + self.start.number

    def sample(self) -> None:
        """Let the last promoted policy respond to prompts."""
        config, output = self.settings.samples, self.folder / "samples.jsonl"
        source = self._writer[1]
        inputs = {
            "policy": digest_source(source),
            "prompts": digest_source(self.settings.prompts),
            "samples": config,
            "seed": self.seed,
        }

        def make() -> None:
            rows = models.sample_policy(
                source, self.settings.prompts, config, self.start.number, self._draw
            )
            write_rows(output, rows)

        self._step("sample", output, inputs, make)

    def choose(self) -> None:
        """Choose the pairs to ask about, a share of them at random."""
        output, settings, start = self.folder / "tasks.jsonl", self.settings, self.start
        samples = self.folder / "samples.jsonl"
        inputs = {
            "samples": digest_source(samples),
            "reward": start.reward and digest_source(start.reward),
            "judged": start.judged and digest_source(start.judged),
            "choice": settings.choice,
            "seed": self.seed,
        }

        def make() -> None:
            sampled = read_sampled(str(samples))
            judged = [] if start.judged is None else read_tasks(start.judged / "full.jsonl")
            features_of = None if start.reward is None else models.features_of(start.reward)
            with autocast(self._draw.precision):
                tasks = choose_tasks(sampled, judged, features_of, settings.choice, self.seed)
            write_rows(output, (_row(task, start.number) for task in tasks))

        self._step("choose", output, inputs, make)

    def collect(self, *, waits: bool) -> None:
        """Ask labelers about the pairs, until nobody needs to be asked any more.

        Raises:
            WaitingError: people have not judged all of them, and the run does not wait.
            DataError: the store is not that of the earlier rounds.
        """
        output, settings, start = self.folder / "judged", self.settings, self.start
        tasks = self.folder / "tasks.jsonl"
        inputs = {
            "tasks": digest_source(tasks),
            "slots": settings.slots,
            "early_stop": settings.early_stop,
            "labeler": settings.labeler,
        }
        sampling = {"seed": self.seed, "temperature": settings.samples.temperature}
        origin = Origin(*self._writer, sampling)

        def make() -> None:
            asked = read_tasks(tasks)
            if start.judged is not None:
                check_store(self.store, read_tasks(start.judged / "full.jsonl"), start.judged)
            with autocast(self._draw.precision):
                ids = collect(self.store, asked, origin, settings, self.say, waits=waits)
            # All that was judged by now, whenever it was asked: late judgments count as well. Not
            # what labelers say to other questions.
            judged = list(self.store.judged_tasks(question=""))
            own = [task.content for task in self.store.tasks(ids) if task.content.judgments]
            with written_whole(output) as partial:
                partial.mkdir()
                write_rows(partial / OWN, map(full_row, own))
                write_rows(partial / "full.jsonl", map(full_row, judged))
                rows = (training_row(task) for task in judged)
                write_rows(partial / "training.jsonl", (row for row in rows if row is not None))

        self._step("collect", output, inputs, make)

    def train_reward(self) -> None:
        """Train a reward model anew from the SFT backbone, on the judgments of all rounds."""
        sft = digest_source(self.settings.sft)
        self._train("reward", {"judged": digest_source(self._training), "sft": sft})

    def refresh(self) -> None:
        """Fine-tune again, with the best responses of all rounds so far, where that is wanted."""
        config, output = self.settings.refresh, demonstrations(self.folder)
        if config is None:
            return
        folders = [self.settings.round_folder(n) for n in range(1, self.start.number + 1)]
        inputs = {
            "samples": [digest_source(folder / "samples.jsonl") for folder in folders],
            "reward": digest_source(self._reward),
            "data": digest_source(config.data),
            "num_best": config.num_best,
        }

        def make() -> None:
            sampled = [one for f in folders for one in read_sampled(str(f / "samples.jsonl"))]
            with autocast(self._draw.precision):
                num_best = config.num_best * len(folders)
                best = models.best_responses(sampled, str(self._reward), num_best)
            rows = (row for row, _ in read_records(config.data))
            write_rows(output, [*rows, *best])

        self._step("best", output, inputs, make)
        inputs = {"base": digest_source(config.base), "data": digest_source(output)}
        self._train("refresh", inputs)

    def train_policy(self) -> None:
        """Train the policy: from SFT again, or on from the last promoted one."""
        settings = self.settings
        source = policy_start(settings, self.folder, self.start.policy)
        inputs: dict[str, object] = {"start": digest_source(source)}
        if settings.policy.phase == "ppo":
            inputs |= {"prompts": digest_source(settings.prompts)}
            inputs |= {"reward": digest_source(self._reward)}
        else:
            inputs |= {"judged": digest_source(self._training)}
        self._train("policy", inputs)

    def judge(self) -> None:
        """Compare the new policy with the last promoted one and with SFT on held-out prompts."""
        settings, gate = self.settings, self.settings.gate
        policies = {NEW: str(self.folder / "policy" / "model"), SFT: settings.sft}
        if self.start.policy != settings.sft:
            policies[PROMOTED] = self.start.policy
        judges = {GATE: gate.judge, "reward": f"reward:{self.folder / 'reward' / 'model'}"}
        judges |= gate.final_judges
        words = [
            *("evaluate", "policies", *(f"{name}={place}" for name, place in policies.items())),
            *(f"--judge={name}={place}" for name, place in judges.items()),
            f"--reference={settings.sft}",
            f"--prompts={settings.held_out}",
            f"--num-prompts={gate.num_prompts}",
            f"--max-new-tokens={settings.samples.max_new_tokens}",
            f"--seed={self.seed}",
            f"--precision={self.settings.precision}",
            f"--output={self.folder / 'judge'}",
        ]
        if gate.perplexity_data is not None:
            words += [f"--perplexity-data={gate.perplexity_data}"]
            words += [f"--perplexity-rows={gate.perplexity_rows}"]
        inputs = {
            "command": words,
            "policies": {name: digest_source(place) for name, place in policies.items()},
            "judges": {
                name: digest_source(place.removeprefix("reward:")) for name, place in judges.items()
            },
            "held_out": digest_source(settings.held_out),
        }
        output = self.folder / "judge"
        self._step("judge", output, inputs, lambda: self._run("judge", words))

    def measure(self) -> None:
        """Measure the reward models where nothing was chosen.

        The last round's model on this round's random share, which it never saw (and which is of the
        policy trained against it, where that was promoted). Where the truth is simulated: this
        round's model on the new policy's responses, and how often a single judgment was right.
        """
        settings, labeler = self.settings, self.settings.labeler
        output = self.folder / "measures.json"
        reward, policy = self.folder / "reward" / "model", self.folder / "policy" / "model"
        inputs = {
            "judged": digest_source(self.folder / "judged"),
            "last_reward": self.start.reward and digest_source(self.start.reward),
            "reward": digest_source(reward),
            "policy": digest_source(policy),
        }

        def make() -> None:
            found: dict[str, object] = dict.fromkeys(MEASURES)
            drawn = random_share(read_tasks(self.folder / "judged" / OWN))
            if self.start.reward is not None:
                rows = [row for row in map(training_row, drawn) if row is not None]
                found["on_random_share"] = models.accuracy_on(rows, self.start.reward)
            if isinstance(labeler, SimulatedRaters):
                found["raters_right"] = models.raters_right(drawn, labeler.gold)
                config = replace(settings.samples, num_prompts=settings.gate.num_prompts)
                found["on_own_samples"] = models.accuracy_against_gold(
                    str(policy), str(reward), labeler.gold, settings.held_out, config, self._draw
                )
            write_json(output, found)

        self._step("measure", output, inputs, autocast(self._draw.precision)(make))

    def promote(self) -> bool:
        """Decide whether the next round starts from the new policy."""
        output, report = self.folder / "promotion.json", self.folder / "judge" / "report.json"
        opponent = SFT if self.start.policy == self.settings.sft else PROMOTED
        inputs = {"report": digest_source(report), "gate": self.settings.gate, "opponent": opponent}

        def make() -> None:
            promotion = decide(read_figures(report), self.settings.gate, opponent)
            write_json(output, {**promotion._asdict(), "opponent": opponent, **self._record()})

        self._step("promote", output, inputs, make)
        return bool(read_json(output)["is_promoted"])

    @property
    def _writer(self) -> tuple[str, str]:
        """Name and place of the policy that the round's pairs are responses of."""
        if self.settings.samples.policy == "sft":
            return "SFT", self.settings.sft
        return self.start.policy_of, self.start.policy

    @property
    def _reward(self) -> Path:
        return reward_model(self.folder)

    @property
    def _training(self) -> Path:
        return training_data(self.folder)

    @property
    def _draw(self) -> models.Draw:
        precision = self.settings.precision
        assert precision != "auto"  # the loop has chosen
        return models.Draw(self.seed, precision)

    def _record(self) -> dict[str, str]:
        """Say in words which data and which start each model had."""
        number, policy = self.start.number, self.settings.policy
        rounds = "round 1" if number == 1 else f"rounds 1 to {number}"
        start = f"the policy of {self.start.policy_of}"
        if policy.start == "sft":
            best = f", fine-tuned again with the best responses of {rounds}"
            start = "the SFT policy" + best * (self.settings.refresh is not None)
        learned = (
            f"prompts of {self.settings.prompts} and the reward model of round {number}"
            if policy.phase == "ppo"
            else f"the judgments of {rounds}"
        )
        return {
            "about_samples": f"The pairs are responses of the policy of {self._writer[0]}.",
            "about_reward": f"The reward model starts anew from the SFT backbone and learns from "
            f"all judgments of {rounds}.",
            "about_policy": f"The policy starts from {start} and learns by {policy.phase.upper()} "
            f"from {learned}. Its reference is the SFT policy.",
        }

    def _step(
        self, name: str, output: Path, inputs: Mapping[str, object], make: Callable[[], None]
    ) -> None:
        run_step(record_path(self.folder, name), output, inputs, make)

    def _train(self, name: str, inputs: Mapping[str, object]) -> None:
        """Run a phase that leaves `NAME/model`."""
        words = phase_words(self.settings, self.folder, self.start.policy, self.seed)[name]
        output = self.folder / name / "model"
        files = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
        inputs = {**inputs, "command": words, "configs": [digest_source(file) for file in files]}
        self._step(name, output, inputs, lambda: self._run(name, words))

    def _run(self, title: str, words: Sequence[str]) -> None:
        self.say(f"$ {shlex.join(['lit-rlhf', *words])}")
        self.run(f"round {self.start.number}, {title}", words)


def record_path(folder: Path, step: str) -> Path:
    """Return where the record of a round's step lies."""
    return folder / f"{STEPS.index(step) + 1}-{step}.json"


def random_share(tasks: Sequence[JudgedTask]) -> list[JudgedTask]:
    """Return a round's tasks that were drawn at random."""
    return [task for task in tasks if task.metadata[SHARE] == RANDOM]


def read_tasks(path: Path) -> list[JudgedTask]:
    """Read tasks that `full_row` wrote."""
    rows = enumerate(read_rows(path), start=1)
    return [task_of_row({"judgments": [], **row}, f"{path}:{number}") for number, row in rows]


def _row(task: JudgedTask, number: int) -> dict[str, object]:
    return full_row(task._replace(metadata={**task.metadata, "round": number}))
