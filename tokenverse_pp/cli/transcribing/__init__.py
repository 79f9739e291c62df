"""The parts of `tokenverse-pp transcribe`."""
