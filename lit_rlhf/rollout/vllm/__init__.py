"""vLLM as the engine that draws responses: inside this process, or as a server."""

from lit_rlhf.rollout.vllm.generator import VLLMGenerator

__all__ = ["VLLMGenerator"]
