"""From a `Scan` to `Measurements`: every value with its unit, one standard deviation of its error, and a status."""

from tumorvqa.measuring.case import measure

__all__ = ["measure"]
