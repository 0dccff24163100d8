"""Methods that are taught by the encoder of another run."""
