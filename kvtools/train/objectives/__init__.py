"""Objectives of training by rewards and preferences: pure functions of log-probabilities, advantages and masks."""
