"""A web page to try a model: ``mmgcvit app``."""
