"""`troupe demo`: draws a green-screen clip and a stage, and restages the one on the other."""
