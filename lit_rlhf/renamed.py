"""Settings and classes that had another name, so that an old file is told the new one.

A key is a dotted option (`model.policy`; a group covers what is under it), a class, or
`Class.argument`. Only names that no longer exist are looked up here: `model.policy` is found for
the reward phase alone, since the others still have it.
"""

# What it is called now.
RENAMED: dict[str, str] = {
    "model.policy": "model.backbone",
}

# What is gone, and what to do instead: a sentence without its subject.
GONE: dict[str, str] = {
    "AdaptiveKLCallback": "take it out of the callbacks, and set kl.target, kl.coefficient and "
    "kl.horizon (kl.target null keeps the coefficient as it is)",
    "model.kl_coef": "set kl.coefficient, with kl.target null for one that stays, or "
    "model.kl_penalty null for no penalty",
    "model.update.clip_range": "set model.update.policy_loss.clip_range",
    "model.centering": "set model.loss.centering",
    "rank_watch": "leave it out: the launcher ends a run when one of its processes is gone",
    "last_checkpoint.grace_s": "leave it out: on SIGTERM the batch is finished and saved",
    "model.lean_layers": "norms and MLPs are those of transformers; model.cpu_paths false switches "
    "off what is made for CPUs",
    "data.cache_tokens": "tokens are always kept on the disk; leave it out",
}


def new_name(old: str) -> str | None:
    """Return what to write in place of an old name, as the end of a message, or None.

    Args:
        old: an option, a class or `Class.argument` that does not exist (any more).
    """
    parts = old.removesuffix("+").split(".")
    for length in range(len(parts), 0, -1):
        name, rest = ".".join(parts[:length]), parts[length:]
        if name in RENAMED:
            return f"; '{name}' is now called '{RENAMED[name]}'" + (
                f": write '{'.'.join([RENAMED[name], *rest])}'" if rest else ""
            )
        if name in GONE:
            return f"; '{name}' is gone: {GONE[name]}"
    return None
