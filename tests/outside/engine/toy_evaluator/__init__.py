"""An engine from another package: it scores answers, without torch."""
