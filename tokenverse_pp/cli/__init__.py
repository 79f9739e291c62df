"""The command line ``tokenverse-pp``."""
