"""The small random model that the tests of the engine generate with."""

from r1parallel.config.schema import SamplingConfig

PROMPT_SLOTS, TOKENS, ROWS = 9, 7, 4
PROMPT_LENGTHS = (3, 9, 1, 6, 5, 2)  # more than ROWS: some wait until a row is free
PAD_ID = 0
STOP_IDS = [3, 11, 20]
GREEDY = SamplingConfig(max_tokens=TOKENS, temperature=0.0)
SAMPLED = SamplingConfig(max_tokens=TOKENS)
