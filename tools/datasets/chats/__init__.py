"""Conversations as tokens and loss masks: encoding, statistics, a picture of the lengths, a view of one."""
