"""Training: one LightningModule, what it optimises, and the callbacks around it."""
