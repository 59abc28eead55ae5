"""Instruction tuning: conversations packed into sequences, with a loss on chosen tokens only."""
