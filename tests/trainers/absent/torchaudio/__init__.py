"""LLaMA-Factory imports torchaudio at start, for sound alone; its wheels match CUDA builds of torch only."""
