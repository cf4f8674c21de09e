"""Downstream trainings: probing and fine-tuning a pretrained network inside stock nnU-Net."""
