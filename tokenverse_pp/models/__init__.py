"""The transducer, its encoders, and how trained models are loaded and saved."""
