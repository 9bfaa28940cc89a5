"""From a model's words to scores with intervals."""
