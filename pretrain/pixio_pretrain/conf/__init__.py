"""Runs: each file opens with its command and what to expect of it."""
