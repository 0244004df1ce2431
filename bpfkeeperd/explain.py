"""What a map type is, and what an errno means where. Pure."""
