"""A policy that answers prompts, and rewards that say how well: shared by PPO and online DPO."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch import Callback
from torch import Tensor

from lit_rlhf.batches import PromptBatch, SampleBatch, TokenRows, cut_by_tokens
from lit_rlhf.callbacks import OveroptimizationMonitor
from lit_rlhf.callbacks.of_trainer import callbacks_of
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.given import ModelSource, model_source
from lit_rlhf.models.policy import PolicyModel, TokenScores
from lit_rlhf.modules.building import build_policy, build_reference, prepare
from lit_rlhf.modules.default_callbacks import tell_of_averages
from lit_rlhf.modules.metrics import NamedMeans
from lit_rlhf.modules.padding_gap import rollout_padding_gaps
from lit_rlhf.modules.phase import PhaseModule
from lit_rlhf.modules.ppo_metrics import held_out_columns, sample_records
from lit_rlhf.modules.sharding import gathered
from lit_rlhf.modules.unscored import abstaining_columns, scored_columns
from lit_rlhf.objectives import MissingEOS, kl_k1
from lit_rlhf.ranks import largest_over_ranks, of_all_ranks, world_size
from lit_rlhf.rewards import RewardSource, as_source, ask, origins_of
from lit_rlhf.rollout import Generator, Sampling, TorchGenerator, collect_samples

# A validation prompt keeps its random stream whatever the training seed is.
_VALIDATION_SEED = 20_220_304
_REWARDS_KEY = "lit_rlhf_rewards"  # in a checkpoint
# What is reported of held-out samples beside the judges' scores.
_RESERVED = {
    *("reward", "kl", "surprisal", "length", "finished", "repetition", "overoptimization_p"),
    *("step", "prompt", "prompt_id", "response"),
}


class ScoredSamples(NamedTuple):
    """Responses and their scores.

    Attributes:
        samples: `B` responses.
        scores: `[B]` float32 from the reward, before the rules for cut and overlong ones.
        greedy_scores: `[B]` of the likeliest response to each row's prompt, behind these rules, or
            None where the advantages need none.
        details: what the reward says beside the scores: name -> `[B]`.
    """

    samples: SampleBatch
    scores: Tensor
    greedy_scores: Tensor | None = None
    details: Mapping[str, Tensor] = MappingProxyType({})


class RewardedPolicy(PhaseModule):
    """Policy, reference, reward and judges; validation by samples.

    Args:
        policy: the SFT policy: hub name or Hugging Face folder.
        reward: what is optimised, by `class_path`; in Python also a function, see
            `FunctionReward`.
        judges: further rewards that are asked at validation alone, by name: a reward model that the
            policy never trains against, a rule, a function.
        sampling: length, temperature and truncation of responses.
        generator: the engine that draws responses.
        missing_eos: what a response scores that did not end by itself.
        seed: of all that is drawn.
        reference: the policy that KL and loss are relative to, where it is another one than
            `policy`: hub name or folder, with the same vocabulary; null for `policy` as it was.
        **kwargs: the settings of `PhaseModule`.

    Raises:
        ConfigError: a judge has a name that the log needs.
    """

    can_search_rate = False
    num_iterations: Tensor
    own_callbacks: ClassVar[tuple[type[Callback], ...]] = (OveroptimizationMonitor,)

    def __init__(
        self,
        policy: ModelSource,
        reward: RewardSource | Callable[..., Any],
        *,
        judges: dict[str, RewardSource | Callable[..., Any]] | None = None,
        sampling: Sampling = Sampling(),
        generator: Generator = TorchGenerator(),
        missing_eos: MissingEOS = MissingEOS(),
        seed: int = 0,
        reference: ModelSource | None = None,
        **kwargs: Any,  # passed on as they are; the config parser finds them there
    ) -> None:
        super().__init__(policy, **kwargs)
        _refuse_reserved_names(judges or {})
        self.reward = as_source(reward)
        self.judges = {name: as_source(judge) for name, judge in (judges or {}).items()}
        self.sampling = sampling
        self.generator = generator
        self.missing_eos = missing_eos
        self.seed = seed
        self.reference_source: str | None = None
        if reference is not None:
            self.reference_source = model_source(reference, "model.reference")
            self.arguments["reference"] = self.reference_source
            if not isinstance(reference, (str, Path)):
                self.given_models["reference"] = self.reference_source
        self.policy: PolicyModel | None = None
        self.reference: PolicyModel | None = None
        self.validation_means = NamedMeans()
        self.validation_samples: list[dict[str, Any]] = []
        self.validation_values: list[dict[str, Tensor]] = []
        # The batches already answered name the next random streams; saved with the module.
        self.register_buffer("num_iterations", torch.zeros((), dtype=torch.long))

    def configure_callbacks(self) -> list[Callback]:
        """Bring `own_callbacks`, too, where the Trainer has none of their kind."""
        missing = [kind for kind in self.own_callbacks if not callbacks_of(self.trainer, kind)]
        return [*super().configure_callbacks(), *(kind() for kind in missing)]

    @property
    @abc.abstractmethod
    def computes_kl(self) -> bool:
        """Whether there is a reference, so that the KL to it is known."""

    @property
    @abc.abstractmethod
    def samples_per_prompt(self) -> int:
        """How many responses to each prompt a training batch draws."""

    @property
    def forward_limits(self) -> dict[str, int | None]:
        """How many rows and tokens a forward of held-out samples has at most."""
        return {"max_rows": None, "max_tokens": None}

    @property
    def origins(self) -> dict[str, str]:
        """The policy, another reference, and the models behind reward and judges."""
        named = {} if self.reference_source is None else {"reference": self.reference_source}
        return {**super().origins, **named, **origins_of(self.sources)}

    @property
    def sources(self) -> dict[str, RewardSource]:
        """The reward and the judges by name."""
        return {"reward": self.reward, **self.judges}

    @property
    def abstaining_values(self) -> list[str]:
        """What NaN says of a held-out response: that it cannot be scored."""
        return abstaining_columns(self.sources)

    @property
    def best_metric(self) -> str | None:
        """What the judge `validation` says, where there is one."""
        return f"val/{self.phase}/validation" if "validation" in self.judges else None

    @property
    def trained_model(self) -> PolicyModel:
        """The policy, once `configure_model` has loaded it."""
        assert self.policy is not None
        return self.policy

    def configure_model(self) -> None:
        """Load the policy, and the reference where it is a model of its own."""
        if self.policy is None:
            self.load_models()
            prepare(self, self.trained_model)

    def load_models(self, *, value_head: bool = False) -> None:
        """Load policy and reference; the policy is not prepared yet.

        Args:
            value_head: on the policy's trunk.
        """
        self.policy = build_policy(
            self.source, self.lora, **self.load_options, value_head=value_head
        )
        if self.computes_kl and (self.lora is None or self.reference_source is not None):
            self.reference = build_reference(
                self.reference_source or self.source, **self.load_options
            )
            prepare(self, self.reference)
        if self.lora is not None and self.device_mesh is None:
            # One trunk for all roles; the reference is the adapter switched off.
            for source in self.sources.values():
                source.share_trunk(self.policy)

    def sample(
        self,
        batch: PromptBatch,
        *,
        seed: int,
        samples_per_prompt: int = 1,
        sampling: Sampling | None = None,
    ) -> SampleBatch:
        """Draw responses from the policy as it is now, by its settings unless others are given."""
        with gathered(self.trained_model):
            return collect_samples(
                self.trained_model,
                self.generator,
                batch,
                self.tokenizer,
                sampling or self.sampling,
                samples_per_prompt=samples_per_prompt,
                seed=seed,
            )

    @torch.no_grad()
    def score_samples(
        self, batch: PromptBatch, *, seed: int, is_greedy: bool = False
    ) -> ScoredSamples:
        """Draw responses, and ask the reward about them; call it on all processes.

        Args:
            batch: prompts of this process; without one that counts, nothing of the result counts.
            seed: of the samples.
            is_greedy: take the likeliest response to each prompt, in place of several samples.
        """
        if is_greedy:
            sampling = dataclasses.replace(self.sampling, temperature=0.0)
            samples = self.sample(batch, seed=seed, sampling=sampling)
        else:
            samples = self.sample(batch, seed=seed, samples_per_prompt=self.samples_per_prompt)
        if not bool((batch.prompt_ids >= 0).any()):
            samples = samples.silenced()
        scores, details = ask("model.reward", self.reward, samples)
        return ScoredSamples(samples, scores, details=details)

    def reference_logprobs(self, rows: TokenRows) -> Tensor:
        """Score response tokens with the reference: its own model, or the adapter switched off."""
        model, with_adapter = self.reference or self.trained_model, self.reference is not None
        temperature = self.sampling.temperature
        scores: TokenScores = model(rows, temperature=temperature, with_adapter=with_adapter)
        return scores.logprobs

    def policy_logprobs(self, rows: TokenRows) -> Tensor:
        """Score response tokens with the policy as it is now, at the temperature of its samples."""
        scores: TokenScores = self.trained_model(rows, temperature=self.sampling.temperature)
        return scores.logprobs

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the states of rewards and judges, of each process its own."""
        super().on_save_checkpoint(checkpoint)
        states = {name: source.state_dict() for name, source in self.sources.items()}
        checkpoint[_REWARDS_KEY] = of_all_ranks(
            {name: state for name, state in states.items() if state}
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Hand the states back; on another number of processes, those of the first."""
        super().on_load_checkpoint(checkpoint)
        states = checkpoint[_REWARDS_KEY]
        own = states[self.global_rank if len(states) == world_size() else 0]
        for name, state in own.items():
            if name in self.sources:
                self.sources[name].load_state_dict(state)

    def padding_gaps(self, batch: PromptBatch) -> dict[str, float]:
        """Return how much the policy's log-probabilities and learned rewards depend on padding."""
        return rollout_padding_gaps(self.trained_model, self.sources, batch)

    def on_validation_epoch_start(self) -> None:
        """Forget the samples of the last validation."""
        tell_of_averages(self.trainer)
        self.validation_samples = []
        self.validation_values = []

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Sample held-out prompts, each from its fixed stream, and ask reward and judges."""
        samples = self.sample(batch, seed=_VALIDATION_SEED)
        rows, limits = samples.rows, self.forward_limits  # forwards no larger than the update's
        logprobs, token_kl = score_in_parts(rows, self.policy_logprobs, **limits), None
        if self.computes_kl:
            token_kl = kl_k1(logprobs, score_in_parts(rows, self.reference_logprobs, **limits))
        columns = held_out_columns(samples, self.sources, logprobs, token_kl)
        counts = (batch.prompt_ids >= 0).float()  # stand-ins of an uneven last batch do not count
        scored, weights = scored_columns(columns, self.abstaining_values, counts)
        self.validation_means.update(scored, counts, **weights)
        self.validation_samples += sample_records(samples, columns, counts)
        self.validation_values.append({"prompt_id": batch.prompt_ids, **columns})

    def on_validation_epoch_end(self) -> None:
        """Log the means over all held-out prompts."""
        tell_of_averages(self.trainer)
        for name, mean in self.validation_means.compute().items():
            self.log(f"{self.stage}/{self.phase}/{name}", mean, prog_bar=name == "reward")

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end


def score_in_parts(
    rows: TokenRows,
    compute: Callable[[TokenRows], Tensor],
    *,
    max_rows: int | None,
    max_tokens: int | None,
) -> Tensor:
    """Score rows in forwards of a limited size, as many on all processes.

    Args:
        rows: `B` rows, one or more.
        compute: rows -> `[b, ...]` numbers.
        max_rows: in one forward, None for any number.
        max_tokens: likewise.

    Returns:
        `[B, ...]`.
    """
    places = torch.arange(len(rows.lengths), device=rows.lengths.device)
    if max_rows is None and max_tokens is None:
        return compute(rows)
    parts = [places[part] for part in cut_by_tokens(rows.lengths.tolist(), max_rows, max_tokens)]
    num_parts = int(largest_over_ranks(len(parts), rows.lengths.device))
    for _ in range(num_parts - len(parts)):
        parts.append(places[:0])
    scores = [(part, compute(rows.select_or_stand_in(part))) for part in parts]
    return torch.cat([score for part, score in scores if len(part)])


def _refuse_reserved_names(judges: Iterable[str]) -> None:
    """Refuse judges whose scores would take the place of something else that is reported.

    Raises:
        ConfigError: a name is taken.
    """
    if taken := sorted(_RESERVED.intersection(judges)):
        raise ConfigError(
            f"model.judges.{taken[0]}: the reports have another column of this name; call the "
            f"judge something else than {', '.join(sorted(_RESERVED))}"
        )
