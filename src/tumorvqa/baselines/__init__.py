"""Models that anyone should beat, and an agent with tools."""
