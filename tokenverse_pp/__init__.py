"""TokenVerse++: one transducer for speech recognition and the tasks written into its transcript."""

__version__ = "0.1.0"
