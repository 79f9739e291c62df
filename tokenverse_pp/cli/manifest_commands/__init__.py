"""The commands of `tokenverse-pp manifest`, one file each."""
