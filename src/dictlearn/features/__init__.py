"""What held-out text and the weights say of every feature: one pass, in bounded memory."""
