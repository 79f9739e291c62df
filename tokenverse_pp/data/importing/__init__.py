"""Read annotation files of many formats as rows, and turn rows into labelled cuts."""
