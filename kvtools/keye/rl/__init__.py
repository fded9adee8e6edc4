"""Reinforcement learning of Keye-VL: prompts, rollouts, rewards, and the tasks that learn from them."""
