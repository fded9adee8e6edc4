"""Reinforcement learning of OneRec: rollouts, rewards, the policy's task, and what a run says of held-out users."""
