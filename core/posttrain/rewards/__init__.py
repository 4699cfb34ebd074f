"""Rewards: functions ``(prompts, completions, **columns) -> list[float | None]``, plain or async.

``completions`` are texts; ``prompts`` are as the data has them, texts or lists of messages; ``columns`` are the other
columns of the data, one value per completion. None means: not applicable here.
"""

from posttrain.rewards.load import installed_rewards, load_rewards
from posttrain.rewards.reward import Reward, check_columns
from posttrain.rewards.scoring import score

__all__ = ["Reward", "check_columns", "installed_rewards", "load_rewards", "score"]
