"""Learning: features, states, actions, reward and Q-learning."""
