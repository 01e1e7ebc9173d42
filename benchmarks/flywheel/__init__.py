"""The flywheel's proof: rounds against one round, random choice and a fixed sampler."""
