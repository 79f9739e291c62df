"""Importing: tables and annotation files of any corpus -> labelled cuts. One file a format."""
