"""Fine-tuning in one command: recognising and converting data, writing a config, training, evaluating, reporting."""
