"""An engine of another package: it scores answers, without torch."""
