"""Training code of the bundled voice: a small model of the CosyVoice2 architecture."""
