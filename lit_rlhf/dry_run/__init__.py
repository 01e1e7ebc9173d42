"""What a run would need, said before it starts: parameters, memory by part, steps, levers."""

from lit_rlhf.dry_run.plan import Plan, Setup, levers, plan_of
from lit_rlhf.dry_run.report import memory_of, render
from lit_rlhf.dry_run.setting_up import setup_of

__all__ = ["Plan", "Setup", "levers", "memory_of", "plan_of", "render", "setup_of"]
