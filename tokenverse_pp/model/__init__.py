"""The transducer and its parts."""
