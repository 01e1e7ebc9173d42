"""Reward models as sequence classifiers, also of architectures of which transformers has none."""

from __future__ import annotations

from typing import cast

from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification

HEAD = "score"  # what transformers calls a classifier's linear head


def ensure_classifier(config: PretrainedConfig) -> None:
    """Let `AutoModelForSequenceClassification` know a classifier of an architecture.

    Where transformers has none, it is what it has for its newer architectures: the trunk and a
    linear head, which reads the last token that is not padding. Elsewhere nothing is changed, nor
    where there is no trunk to put a head on.

    Args:
        config: of the architecture.
    """
    kind = type(config)
    if kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or kind not in MODEL_MAPPING:
        return
    trunk = cast("type[PreTrainedModel]", MODEL_MAPPING[kind])
    base = next(one for one in trunk.__mro__[1:] if issubclass(one, PreTrainedModel))
    classifier = type(
        f"{trunk.__name__.removesuffix('Model')}ForSequenceClassification",
        (GenericForSequenceClassification, base),
        {
            "base_model_prefix": trunk.base_model_prefix or "model",
            "config_class": kind,
            "__module__": trunk.__module__,  # where transformers looks for what the layers can do
        },
    )
    # Without exist_ok, those of its own configurations are passed over.
    AutoModelForSequenceClassification.register(kind, classifier, exist_ok=True)
