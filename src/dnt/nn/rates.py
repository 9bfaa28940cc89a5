"""Learning rates at which each placement was seen to train: of those tried the least and the largest that end within
0.2 nats of the best, by optimizer; with the recipe tiny, for images tiny-images (bench/results/zoo.json). Pure data.

Half decades apart, one seed, 0.3 million parameters, 150 steps: where to begin, not what to expect of a larger model.
"""

RATES: dict[str, tuple[tuple[str, float, float], ...]] = {}
