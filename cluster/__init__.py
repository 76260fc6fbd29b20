"""The machine: configuration, weights, budget, starting or joining Ray, calling pins."""
