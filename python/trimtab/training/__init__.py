"""Training in the digital twin, by the production controller."""
