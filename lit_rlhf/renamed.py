"""Settings and classes that had another name, so that an old file is told the new one."""

# A dotted option (a group covers what is under it), a class, or `Class.argument` -> what to do now.
# Only names that no longer exist are looked up: `model.policy` is found for the reward phase alone,
# since the others still have it.
NEW_NAMES: dict[str, str] = {
    "model.policy": "set model.backbone",
    "AdaptiveKLCallback": "take it out of the callbacks, and set kl.target, kl.coefficient and "
    "kl.horizon (kl.target null keeps the coefficient as it is)",
    "model.kl_coef": "set kl.coefficient, with kl.target null for one that stays, or "
    "model.kl_penalty null for no penalty",
    "model.update.clip_range": "set model.update.policy_loss.clip_range",
    "model.centering": "set model.loss.centering",
}


def new_name(old: str) -> str | None:
    """Return what to write in place of an old name, as the end of a message, or None.

    Args:
        old: an option, a class or `Class.argument` that does not exist (any more).
    """
    parts = old.removesuffix("+").split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in NEW_NAMES:
            return f"; '{name}' has another name now: {NEW_NAMES[name]}"
    return None
