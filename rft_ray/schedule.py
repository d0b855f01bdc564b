"""The learning rate of every optimiser step, as a function of its number alone.

So a resumed run repeats the uninterrupted one, and nothing needs to be saved.
"""

import math

from rft_ray.training_config import RecipeConfig


def learning_rate(step: int, total_steps: int, recipe: RecipeConfig) -> float:
    """The rate of optimiser step 1..total_steps: linear warm-up to the peak, then the schedule."""
    warmup = round(total_steps * recipe.warmup_fraction)
    if step <= warmup:
        # Step 0 would be the one at rate zero, so that no step is wasted on it.
        return recipe.learning_rate * step / (warmup + 1)
    progress = (step - 1 - warmup) / max(1, total_steps - warmup)
    left = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
    }[recipe.schedule]
    return recipe.learning_rate * (recipe.final_fraction + (1 - recipe.final_fraction) * left)
