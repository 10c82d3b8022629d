"""From any Hugging Face model folder to a checked, deployable file. Knows nothing of training."""
