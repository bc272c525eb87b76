from oneroof.engine.llm import LLM as LLM
from oneroof.engine.request import SamplingParams as SamplingParams
from oneroof.load import load as load

__version__: str
__all__ = ["LLM", "SamplingParams", "__version__", "load"]
