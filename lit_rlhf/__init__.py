"""RLHF with PyTorch Lightning: SFT, reward modelling, PPO and DPO, from ratings to a policy."""

__version__ = "0.1.0"
